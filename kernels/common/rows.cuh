// Sharing out rows and their bytes among the threads of a block.
#pragma once

#include "launch.hpp"

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

inline constexpr int block_threads = 512;

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
};

// Share of `total` of this block: [begin, end), in order of blocks.
__device__ __forceinline__ int64_t share_begin(int64_t total, int64_t block) { return total * block / gridDim.x; }

// Calls body with a value of the vector type of `width` bytes.
template <class Body>
__device__ __forceinline__ void with_width(int32_t width, Body &&body) {
    switch (width) {
        case 16: body(uint4{}); break;
        case 8: body(uint2{}); break;
        case 4: body(uint32_t{}); break;
        case 2: body(uint16_t{}); break;
        default: body(uint8_t{}); break;
    }
}

inline constexpr int unroll = 4;

// Up to `unroll` vectors of a row, a team's width apart, so that their loads are in flight together.
template <class V>
struct Batch {
    V value[unroll];

    __device__ __forceinline__ void load(const unsigned char *row, int64_t first, int64_t count, int step) {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (first + u * step < count) value[u] = reinterpret_cast<const V *>(row)[first + u * step];
        }
    }
    __device__ __forceinline__ void store(unsigned char *row, int64_t first, int64_t count, int step) const {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (first + u * step < count) reinterpret_cast<V *>(row)[first + u * step] = value[u];
        }
    }
};

// One team copies one row.
__device__ __forceinline__ void copy_row(const Teams &teams, const unsigned char *from, unsigned char *to, uint64_t bytes, int32_t width) {
    with_width(width, [&](auto vector) {
        using V = decltype(vector);
        const int64_t count = static_cast<int64_t>(bytes / sizeof(V));
        for (int64_t first = teams.lane; first < count; first += int64_t{teams.width} * unroll) {
            Batch<V> batch;
            batch.load(from, first, count, teams.width);
            batch.store(to, first, count, teams.width);
        }
    });
}

}  // namespace moelink::kernels::cuda
