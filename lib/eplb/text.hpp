// Lines of words in files: reading with the place of every error, writing whole, and the checksum that ends both.
#pragma once

#include "base/error.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace moelink::eplb {

// A file that is read line by line. Lines and columns count from 1; a column is a byte of its line.
class TextReader {
public:
    explicit TextReader(const char *path);

    // True when the file begins with a line "KIND VERSION" of any version.
    bool is_kind(std::string_view kind) const;

    // Goes to the next line; false when there is none.
    bool next_line();
    // Goes to the next line, which must exist; "what" is what it should hold.
    void need_line(const char *what);
    // The line itself, without the blanks and the carriage return that may end it.
    std::string_view line() const { return line_; }

    // True, and behind it, when the line goes on with this word.
    bool skip_word(std::string_view word);
    void need_word(std::string_view word);
    int64_t need_integer(const char *name, int64_t least, int64_t most);
    // The next line: a name and a size of 1 .. most that divides `of`, if that is given.
    int need_size(const char *name, int64_t most, int of = 0);
    // A load: finite, 0 or more. `separator` ends it.
    double need_load(char separator);
    // The place in the line, from 0; an error is at the one last set.
    size_t column() const { return column_; }
    void set_column(size_t column) { column_ = column; }
    bool at_end() const { return column_ > line_.size(); }
    // What is left of the line, without the blank before it.
    std::string_view rest();
    void need_end();

    // Head of a file and its last line; the line reached must be a checksum over all before it, and nothing may follow.
    void need_kind(std::string_view kind, int64_t version);
    void need_checksum();

    template <class... Args>
    [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args &&...args) const {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}:{}:{}: {}", path_, number_, column_ + 1, fmt::format(format, std::forward<Args>(args)...));
    }

private:
    std::string_view take(char separator);

    std::string path_;
    std::string text_;
    size_t line_begin_ = 0;
    size_t next_ = 0;    // where the next line begins
    size_t column_ = 0;  // in the line
    uint64_t number_ = 0;
    std::string_view line_;
};

// Writes a text and its checksum beside the path, then gives it the name.
void write_checked(const char *path, std::string text);

}  // namespace moelink::eplb
