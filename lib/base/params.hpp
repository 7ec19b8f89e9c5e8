// The struct_size rules of the ABI, in one place.
#pragma once

#include "base/error.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace moelink {

// No struct of any version is larger: a size beyond it was never set.
inline constexpr uint32_t largest_struct = 4096;

// Copies a caller's parameter struct over the defaults. Fields beyond an older caller's size keep their default; a newer
// caller's tail must be zero.
template <class T>
T read_params(const T *given, const T &defaults, const char *name) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (given == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL", name);
    uint32_t size = given->struct_size;
    if (size < 8 || size % 4 != 0 || size > largest_struct) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.struct_size is {}; start from the _INIT macro or the _init function", name, size);
    }
    const auto *bytes = reinterpret_cast<const unsigned char *>(given);
    for (uint32_t i = sizeof(T); i < size; ++i) {
        if (bytes[i] != 0) {
            fail(MOELINK_ERR_UNSUPPORTED, "{} is of a newer interface ({} bytes, this library knows {}) and sets a field that this library does not know",
                 name, size, sizeof(T));
        }
    }
    T result = defaults;
    std::memcpy(&result, bytes, std::min<size_t>(size, sizeof(T)));
    result.struct_size = sizeof(T);
    return result;
}

// Throws unless the caller has initialised an output struct.
template <class T>
uint32_t check_output(const T *out, const char *name) {
    if (out == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL", name);
    if (out->struct_size < 8 || out->struct_size % 4 != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.struct_size is {}; start from the _INIT macro or the _init function", name, out->struct_size);
    }
    return out->struct_size;
}

// Fills a caller's output struct as far as the caller knows it.
template <class T>
void write_output(T *out, const T &value, const char *name) {
    uint32_t size = check_output(out, name);
    std::memcpy(out, &value, std::min<size_t>(size, sizeof(T)));
    out->struct_size = size;
}

// Copies a text into a caller's buffer, NUL-terminated and cut to fit; false when it was cut.
inline bool write_text(const std::string &text, char *out, uint64_t bytes) {
    if (out == nullptr || bytes == 0) return false;
    size_t length = std::min<size_t>(text.size(), bytes - 1);
    std::memcpy(out, text.data(), length);
    out[length] = '\0';
    return length == text.size();
}

}  // namespace moelink
