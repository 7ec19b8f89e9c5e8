// Random strips between two memories, with bytes around every row that must stay as they are.
#pragma once

#include "kernels/strips.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

extern "C" {
#include "values.h"
}

namespace moelink {

// The strips of one case, as offsets in a memory to copy from and one to copy to.
class StripCase {
public:
    static constexpr unsigned char canary = 0xA5;  // what no source has, and every target

    // `large`: [bytes] of one strip more; 0: none.
    StripCase(uint64_t seed, int strips, uint64_t large) : random_(seed) {
        for (int i = 0; i < strips; ++i) add_random();
        if (large != 0) add(1, large, 0, 0, 16);
        source.resize(source_end_ + 64);
        random_bytes(seed, source.data(), source.size());
        std::replace(source.begin(), source.end(), canary, static_cast<unsigned char>(0));
        target.assign(target_end_ + 64, canary);
        wanted = target;
        for (const Placed &strip : placed_) {
            for (uint64_t row = 0; row < strip.rows; ++row) {
                std::memcpy(&wanted[strip.to + row * strip.to_stride], &source[strip.from + row * strip.from_stride], strip.row_bytes);
            }
        }
    }

    // Between memories that hold `source` and `target`, at addresses that are multiples of 16.
    std::vector<kernels::StripCopy> copies(unsigned char *to, const unsigned char *from) const {
        std::vector<kernels::StripCopy> result;
        for (const Placed &strip : placed_) {
            result.push_back({to + strip.to, from + strip.from, strip.rows, strip.row_bytes, strip.to_stride, strip.from_stride});
        }
        return result;
    }

    std::vector<unsigned char> source;
    std::vector<unsigned char> target;  // before the copies
    std::vector<unsigned char> wanted;  // and after them

private:
    struct Placed {
        uint64_t to, from, rows, row_bytes, to_stride, from_stride;
    };

    uint64_t draw(int low, int high) { return static_cast<uint64_t>(random_range(&random_, low, high)); }

    void add_random() {
        static constexpr int sizes[] = {1, 2, 3, 7, 8, 16, 24, 100, 255, 256, 257, 512, 1000, 4096, 5001, 30000};
        static constexpr uint64_t units[] = {1, 2, 4, 8, 16};
        const uint64_t unit = units[draw(0, 4)];
        const uint64_t drawn = static_cast<uint64_t>(sizes[draw(0, 15)]);
        const uint64_t row_bytes = random_chance(&random_, 50) ? drawn : (drawn + unit - 1) / unit * unit;
        const uint64_t rows = random_chance(&random_, 40) ? 1 : draw(2, 40);
        const bool dense = random_chance(&random_, 30);
        add(rows, row_bytes, dense ? 0 : unit * draw(0, 5), dense ? 0 : unit * draw(0, 5), unit);
    }

    // The gaps between rows are bytes; rows begin at multiples of the unit.
    void add(uint64_t rows, uint64_t row_bytes, uint64_t to_gap, uint64_t from_gap, uint64_t unit) {
        auto place = [&](uint64_t &end, uint64_t stride) {
            const uint64_t at = (end + draw(1, 40) + unit - 1) / unit * unit;
            end = at + (rows - 1) * stride + row_bytes;
            return at;
        };
        const uint64_t to_stride = row_bytes + to_gap, from_stride = row_bytes + from_gap;
        const uint64_t to = place(target_end_, to_stride), from = place(source_end_, from_stride);
        placed_.push_back({to, from, rows, row_bytes, to_stride, from_stride});
    }

    uint64_t random_;
    uint64_t source_end_ = 0;
    uint64_t target_end_ = 0;
    std::vector<Placed> placed_;
};

}  // namespace moelink
