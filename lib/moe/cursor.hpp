// Sharing out memory among the parts of a workspace.
#pragma once

#include "base/error.hpp"

#include <cstdint>
#include <initializer_list>

namespace moelink {

[[noreturn]] inline void too_large() { fail(MOELINK_ERR_OUT_OF_MEMORY, "the workspace of this config does not fit 64-bit sizes"); }

// Throws OUT_OF_MEMORY for a product above `most`.
inline uint64_t multiply(std::initializer_list<uint64_t> factors, uint64_t most = UINT64_MAX) {
    uint64_t product = 1;
    for (uint64_t factor : factors) {
        if (__builtin_mul_overflow(product, factor, &product) || product > most) too_large();
    }
    return product;
}

// Hands out parts of a workspace, each at a multiple of 128 bytes.
class Cursor {
public:
    uint64_t take(std::initializer_list<uint64_t> factors) {
        uint64_t start = at_;
        if (__builtin_add_overflow(at_, multiply(factors), &at_) || at_ > UINT64_MAX - 127) too_large();
        at_ = (at_ + 127) / 128 * 128;
        return start;
    }
    uint64_t at() const { return at_; }

private:
    uint64_t at_ = 0;
};

// Rows of any value type can be combined where they were received, so they must not start at odd places.
inline uint64_t plane_stride(uint64_t row_bytes) { return row_bytes <= 2 ? row_bytes : (row_bytes + 3) / 4 * 4; }

}  // namespace moelink
