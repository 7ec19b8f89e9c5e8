// A shared library that is looked up at run time and stays loaded.
#pragma once

#include <initializer_list>
#include <string>

namespace moelink {

class Library {
public:
    // Opens the first of the names that can be opened; throws Error NO_DRIVER with the loader's text for the last one.
    explicit Library(std::initializer_list<const char *> names);

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

}  // namespace moelink
