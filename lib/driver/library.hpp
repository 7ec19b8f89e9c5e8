// A shared library that is looked up at run time and stays loaded.
#pragma once

#include "base/error.hpp"

#include <initializer_list>
#include <optional>
#include <string>

namespace moelink {

class Library {
public:
    // Opens the first of the names that can be opened; throws Error NO_DRIVER with the loader's text for the last one.
    explicit Library(std::initializer_list<const char *> names);
    // The path in an environment variable, which is then the only one tried: a wrong one is to be seen, not papered over. Without it, the name.
    static Library named(const char *variable, const char *name);

    // Throws Error NO_DRIVER when the library has no such function.
    template <class F>
    void find(F &function, const char *name) const {
        function = reinterpret_cast<F>(symbol(name));
    }
    // The file that it was loaded from.
    const std::string &file() const { return file_; }

private:
    void *symbol(const char *name) const;
    void *handle_ = nullptr;
    std::string file_;
};

// What `load` gave, or why it failed: tried once, and never freed, since objects may free device memory while the process exits.
template <class Table>
class Loaded {
public:
    explicit Loaded(Table (*load)()) {
        try {
            table_ = load();
        } catch (const Error &error) {
            why_ = error.text();
        }
    }
    // Throws Error NO_DRIVER with the reason.
    const Table &get() const {
        if (!table_) fail(MOELINK_ERR_NO_DRIVER, "{}", why_);
        return *table_;
    }

private:
    std::optional<Table> table_;
    std::string why_;
};

}  // namespace moelink
