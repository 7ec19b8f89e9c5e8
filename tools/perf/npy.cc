// The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include "npy.hpp"

#include <cstring>
#include <fstream>
#include <regex>
#include <stdexcept>

#include <fmt/format.h>

namespace perf {

namespace {

// The header is a Python dictionary literal on one line.
std::string field(const std::string &path, const std::string &header, const std::string &pattern, const char *what) {
    std::smatch match;
    if (!std::regex_search(header, match, std::regex(pattern))) {
        throw std::runtime_error(fmt::format("{}: the .npy header has no readable {}: {}", path, what, header));
    }
    return match[1];
}

}  // namespace

NpyTable read_npy(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(fmt::format("{}: cannot be opened", path));
    }
    unsigned char start[12] = {};
    file.read(reinterpret_cast<char *>(start), 10);
    if (!file || std::memcmp(start, "\x93NUMPY", 6) != 0) {
        throw std::runtime_error(fmt::format("{}: not a .npy file (it does not begin with \\x93NUMPY)", path));
    }
    const int version = start[6];
    if (version < 1 || version > 2) {
        throw std::runtime_error(fmt::format("{}: .npy format version {} is not known; versions 1 and 2 are", path, version));
    }
    uint32_t header_bytes = start[8] | static_cast<uint32_t>(start[9]) << 8;
    if (version == 2) {
        file.read(reinterpret_cast<char *>(start + 10), 2);
        header_bytes |= static_cast<uint32_t>(start[10]) << 16 | static_cast<uint32_t>(start[11]) << 24;
    }
    constexpr uint32_t most_header = 1u << 20;
    if (!file || header_bytes > most_header) {
        throw std::runtime_error(fmt::format("{}: damaged .npy header (length {})", path, header_bytes));
    }
    std::string header(header_bytes, '\0');
    file.read(header.data(), static_cast<std::streamsize>(header_bytes));
    if (!file) {
        throw std::runtime_error(fmt::format("{}: the file ends inside its .npy header", path));
    }
    const std::string type = field(path, header, "'descr'\\s*:\\s*'([^']*)'", "descr");
    if (type != "<i2" && type != "<i4") {
        throw std::runtime_error(
            fmt::format("{}: holds \"{}\"; expert ids must be little-endian int16 or int32 (<i2, <i4)", path, type));
    }
    if (field(path, header, "'fortran_order'\\s*:\\s*(True|False)", "fortran_order") == "True") {
        throw std::runtime_error(fmt::format("{}: is in Fortran order; save it with numpy.ascontiguousarray", path));
    }
    const std::string shape = field(path, header, "'shape'\\s*:\\s*\\(([^)]*)\\)", "shape");
    std::smatch match;
    if (!std::regex_match(shape, match, std::regex("\\s*(\\d{1,15})\\s*,\\s*(\\d{1,15})\\s*,?\\s*"))) {
        throw std::runtime_error(fmt::format("{}: has the shape ({}); it must be [tokens, top_k]", path, shape));
    }
    NpyTable table;
    table.rows = std::stoll(match[1]);
    table.columns = std::stoll(match[2]);
    constexpr int64_t most_columns = 1 << 16;
    constexpr int64_t most_values = int64_t{1} << 32;
    if (table.rows == 0 || table.columns == 0 || table.columns > most_columns || table.rows > most_values / table.columns) {
        throw std::runtime_error(fmt::format("{}: shape ({}) is empty or too large", path, shape));
    }
    const bool narrow = type == "<i2";
    const auto count = static_cast<size_t>(table.rows * table.columns);
    // Read row by row, so that a header that promises too much fails before it takes the memory.
    std::vector<char> row(static_cast<size_t>(table.columns) * (narrow ? 2 : 4));
    for (int64_t r = 0; r < table.rows; ++r) {
        file.read(row.data(), static_cast<std::streamsize>(row.size()));
        if (!file) {
            throw std::runtime_error(fmt::format("{}: ends in row {} of {}", path, r, table.rows));
        }
        for (int64_t c = 0; c < table.columns; ++c) {
            int16_t short_id;
            int32_t id;
            if (narrow) {
                std::memcpy(&short_id, row.data() + c * 2, 2);
                id = short_id;
            } else {
                std::memcpy(&id, row.data() + c * 4, 4);
            }
            table.values.push_back(id);
        }
    }
    if (table.values.size() != count || file.peek() != std::char_traits<char>::eof()) {
        throw std::runtime_error(fmt::format("{}: has more bytes than its shape ({}) says", path, shape));
    }
    return table;
}

}  // namespace perf
