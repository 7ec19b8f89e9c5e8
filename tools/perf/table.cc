#include "table.hpp"

#include <fmt/format.h>

namespace perf {

std::string number(double value) {
    return fmt::format("{:.{}f}", value, value < 100 ? 2 : value < 10000 ? 1 : 0);
}

std::string percent(double value, bool with_sign) {
    return with_sign ? fmt::format("{:+.1f} %", 100 * value) : fmt::format("{:.1f} %", 100 * value);
}

std::string count(const nlohmann::json &row, const char *key) {
    return std::to_string(row.at(key).get<int64_t>());
}

double value(const nlohmann::json &row, const char *key) {
    return row.at(key).get<double>();
}

void print_line(std::string line) {
    line.resize(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", line);
}

}  // namespace perf
