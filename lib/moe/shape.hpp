#pragma once

#include <cstdint>

namespace moelink {

// What ranks must agree on in a round, in 32 bits (FNV-1a).
class Shape {
public:
    Shape &add(uint64_t value) {
        for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ (value >> (8 * i) & 0xff)) * 16777619u;
        return *this;
    }
    uint32_t value() const { return hash_; }

private:
    uint32_t hash_ = 2166136261u;
};

}  // namespace moelink
