// Sharing out rows and their bytes among the threads of a block.
#pragma once

#include "launch.hpp"

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

inline constexpr int block_threads = 512;
inline constexpr int block_warps = block_threads / 32;
inline constexpr unsigned all_lanes = 0xffffffffu;

// The threads of a block in teams, one row a team: as many teams as there are rows, from one of 512 threads to 16 of 32.
struct Teams {
    int count;
    int team;
    int lane;
    int width;

    __device__ explicit Teams(int64_t rows) {
        int log_count = 0;
        while (log_count < 4 && (int64_t{1} << log_count) < rows) ++log_count;
        count = 1 << log_count;
        width = block_threads >> log_count;
        team = static_cast<int>(threadIdx.x) / width;
        lane = static_cast<int>(threadIdx.x) % width;
    }

    // A team a warp, where only the first warps have rows to move.
    __device__ Teams(int64_t rows, int warps) : Teams(warps < block_warps ? block_warps : rows) {
        if (warps < block_warps) count = warps;
    }
};

// Items of many lists shared out among the warps of all blocks, one after another over the blocks so that few items meet many
// multiprocessors. Lists follow each other without a gap.
class WarpShare {
public:
    __device__ WarpShare(int block, int blocks) : next_(block + static_cast<int>(threadIdx.x / 32) * blocks), warps_(blocks * (block_threads / 32)) {}

    __device__ __forceinline__ int first() const { return next_; }

    // body(item) for this warp's items of a list of `count`.
    template <class Body>
    __device__ __forceinline__ void each(int count, Body &&body) {
        for (; next_ < count; next_ += warps_) body(next_);
        next_ -= count;
    }

    // body(item, ahead(item)), of which ahead is called one item early, so that what it loads is there in time.
    template <class Ahead, class Body>
    __device__ __forceinline__ void each(int count, Ahead &&ahead, Body &&body) {
        if (next_ >= count) return;
        auto coming = ahead(next_);
        for (int item = next_; item < count; item += warps_) {
            const auto now = coming;
            coming = ahead(min(item + warps_, count - 1));
            body(item, now);
        }
    }

private:
    int next_;
    int warps_;
};

// Where a block's share of `total` begins; it ends where the next block's does. The first blocks have one more.
__device__ __forceinline__ int64_t share_begin(int32_t total, int32_t block, int32_t blocks) {
    const int32_t each = total / blocks;
    return int64_t{each} * block + min(block, total - each * blocks);
}

// Widths below 16 have no place in the code of those who go the usual way: instructions are fetched anew at every launch.
template <class Body>
__device__ __noinline__ void with_small_width(int32_t width, const Body body) {
    switch (width) {
        case 8: body(uint2{}); break;
        case 4: body(uint32_t{}); break;
        case 2: body(uint16_t{}); break;
        default: body(uint8_t{}); break;
    }
}

// Calls body, which captures by value, with a value of the vector type of `width` bytes.
template <class Body>
__device__ __forceinline__ void with_width(int32_t width, const Body &body) {
    if (width == 16) {
        body(uint4{});
    } else {
        with_small_width(width, body);
    }
}

inline constexpr int unroll = 4;

// A vector that is read, or written, once: it passes the multiprocessor's cache.
template <class V>
__device__ __forceinline__ V load_once(const V *at) {
    if constexpr (sizeof(V) == sizeof(uint4)) {
        uint4 value;
        asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                     : "l"(at));
        return reinterpret_cast<V &>(value);
    } else {
        return *at;
    }
}

template <class V>
__device__ __forceinline__ void store_once(V *at, const V &value) {
    if constexpr (sizeof(V) == sizeof(uint4)) {
        const uint4 &vector = reinterpret_cast<const uint4 &>(value);
        asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(vector.x), "r"(vector.y), "r"(vector.z), "r"(vector.w)
                     : "memory");
    } else {
        *at = value;
    }
}

// Up to `unroll` vectors of a row, a team's width apart, so that their loads are in flight together.
template <class V>
struct Batch {
    V value[unroll];

    __device__ __forceinline__ void load(const unsigned char *row, int64_t first, int64_t count, int step) {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (first + u * step < count) value[u] = load_once(reinterpret_cast<const V *>(row) + first + u * step);
        }
    }
    __device__ __forceinline__ void store(unsigned char *row, int64_t first, int64_t count, int step) const {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (first + u * step < count) store_once(reinterpret_cast<V *>(row) + first + u * step, value[u]);
        }
    }
};

// `threads` threads copy one row.
__device__ __forceinline__ void copy_row(int threads, int thread, const unsigned char *from, unsigned char *to, uint64_t bytes, int32_t width) {
    with_width(width, [=](auto vector) {
        using V = decltype(vector);
        const int64_t count = static_cast<int64_t>(bytes / sizeof(V));
        for (int64_t first = thread; first < count; first += int64_t{threads} * unroll) {
            Batch<V> batch;
            batch.load(from, first, count, threads);
            batch.store(to, first, count, threads);
        }
    });
}

}  // namespace moelink::kernels::cuda
