#include "eplb/text.hpp"

#include "base/guard.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>

#include <sodium.h>
#include <unistd.h>

namespace moelink::eplb {

namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE *)>;

std::string checksum(std::string_view text) {
    if (sodium_init() < 0) fail(MOELINK_ERR_INTERNAL, "libsodium cannot be initialised");
    std::array<unsigned char, 16> hash;
    crypto_generichash(hash.data(), hash.size(), reinterpret_cast<const unsigned char *>(text.data()), text.size(), nullptr, 0);
    std::array<char, 2 * hash.size() + 1> hex;
    return sodium_bin2hex(hex.data(), hex.size(), hash.data(), hash.size());
}

std::string read_all(const char *path) {
    File file(std::fopen(path, "rb"), &std::fclose);
    if (!file) fail(MOELINK_ERR_INVALID_STATE, "{}: {}", path, errno_text("open", errno));
    std::string text;
    std::array<char, 65536> part;
    while (size_t bytes = std::fread(part.data(), 1, part.size(), file.get())) text.append(part.data(), bytes);
    if (std::ferror(file.get())) fail(MOELINK_ERR_INVALID_STATE, "{}: {}", path, errno_text("read", errno));
    return text;
}

// A word as it can stand in an error's text.
std::string shown(std::string_view word) {
    constexpr size_t most = 40;
    std::string text;
    for (char c : word.substr(0, most)) text += c >= ' ' && c != 127 ? c : '?';
    return word.size() > most ? text + "..." : text;
}

}  // namespace

TextReader::TextReader(const char *path) : path_(not_null(path, "path")), text_(read_all(path)) {}

bool TextReader::is_kind(std::string_view kind) const {
    return text_.size() > kind.size() && std::string_view(text_).starts_with(kind) && text_[kind.size()] == ' ';
}

bool TextReader::next_line() {
    if (next_ >= text_.size()) return false;
    line_begin_ = next_;
    column_ = 0;
    number_ += 1;
    size_t end = text_.find('\n', next_);
    if (end == std::string::npos) end = text_.size();
    next_ = end + 1;
    line_ = std::string_view(text_).substr(line_begin_, end - line_begin_);
    while (!line_.empty() && (line_.back() == '\r' || line_.back() == ' ')) line_.remove_suffix(1);
    return true;
}

void TextReader::need_line(const char *what) {
    if (next_line()) return;
    number_ += 1;
    column_ = 0;
    fail_here("the file ends where {} should stand", what);
}

std::string_view TextReader::take(char separator) {
    std::string_view left = line_.substr(std::min(column_, line_.size()));
    return left.substr(0, left.find(separator));
}

bool TextReader::skip_word(std::string_view word) {
    if (take(' ') != word) return false;
    column_ += word.size() + 1;
    return true;
}

void TextReader::need_word(std::string_view word) {
    if (!skip_word(word)) fail_here("\"{}\" where \"{}\" should stand", shown(take(' ')), word);
}

int64_t TextReader::need_integer(const char *name, int64_t least, int64_t most) {
    const std::string_view word = take(' ');
    int64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (word.empty()) fail_here("the line ends where {} should stand", name);
    if (error == std::errc::invalid_argument || end != word.data() + word.size()) fail_here("\"{}\" is no {}", shown(word), name);
    if (error != std::errc{} || value < least || value > most) {
        fail_here("{} is no {}; it must be in {} .. {}", shown(word), name, least, most);
    }
    column_ += word.size() + 1;
    return value;
}

int TextReader::need_size(const char *name, int64_t most, int of) {
    need_line(name);
    need_word(name);
    const size_t at = column_;
    const int size = static_cast<int>(need_integer(name, 1, most));
    if (of != 0 && of % size != 0) {
        column_ = at;
        fail_here("{} {} do not divide {} evenly", size, name, of);
    }
    need_end();
    return size;
}

double TextReader::need_load(char separator) {
    const std::string_view word = take(separator);
    double value = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (word.empty()) fail_here("a load is missing");
    if (error != std::errc{} || end != word.data() + word.size() || !(value >= 0) || std::isinf(value)) {
        fail_here("\"{}\" is no load; a load is a finite number, 0 or more", shown(word));
    }
    column_ += word.size() + 1;
    return value;
}

std::string_view TextReader::rest() {
    const std::string_view left = line_.substr(std::min(column_, line_.size()));
    column_ = line_.size();
    return left;
}

void TextReader::need_end() {
    if (column_ < line_.size()) fail_here("\"{}\" where the line should end", shown(line_.substr(column_)));
}

void TextReader::need_kind(std::string_view kind, int64_t version) {
    need_line("the kind of file");
    need_word(kind);
    const int64_t found = need_integer("version", 1, INT32_MAX);
    if (found > version) {
        fail(MOELINK_ERR_UNSUPPORTED, "{}:{}:1: {} of version {}; this library reads up to {}", path_, number_, kind, found, version);
    }
    need_end();
}

void TextReader::need_checksum() {
    const std::string expected = checksum(std::string_view(text_).substr(0, line_begin_));
    need_word("checksum");
    const std::string_view found = take(' ');
    if (found != expected) {
        fail_here("the checksum is \"{}\", and of what stands here it is {}: the file was changed or damaged", shown(found), expected);
    }
    column_ += found.size() + 1;
    need_end();
    if (next_line()) fail_here("\"{}\" behind the checksum", shown(line_));
}

void write_checked(const char *path, std::string text) {
    not_null(path, "path");
    text += fmt::format("checksum {}\n", checksum(text));
    static std::atomic<uint64_t> number{0};
    std::string part;
    File file(nullptr, &std::fclose);
    do {  // past what a process of the same number may have left
        part = fmt::format("{}.part-{}-{}", path, getpid(), number.fetch_add(1));
        file.reset(std::fopen(part.c_str(), "wbx"));
    } while (!file && errno == EEXIST);
    if (!file) fail(MOELINK_ERR_INVALID_STATE, "{}: {}", part, errno_text("open", errno));
    const char *what = "write";
    bool good = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size();
    good = std::fclose(file.release()) == 0 && good;
    if (good) {
        what = "rename";
        good = std::rename(part.c_str(), path) == 0;
    }
    if (good) return;
    const int error = errno;
    std::remove(part.c_str());
    fail(MOELINK_ERR_INVALID_STATE, "{}: {}", path, errno_text(what, error));
}

}  // namespace moelink::eplb
