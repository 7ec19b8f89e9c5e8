// Copies of strips. Every warp takes one piece after the other, next to those of the other blocks' warps, so that a few small strips
// meet all multiprocessors and a large one is shared out evenly.
#include "common/load.cuh"
#include "strips.hpp"

#include <algorithm>

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

namespace {

constexpr int strip_threads = 512;
constexpr int warp_threads = 32;
constexpr int in_flight = piece_vectors / warp_threads;  // loads of a thread: reading a peer takes a microsecond or two

// 32 vectors from one of a lane's to its next, as rows and the rest of a row.
template <class V>
struct Step {
    uint64_t columns;
    uint64_t to, from;            // [bytes]
    uint64_t to_wrap, from_wrap;  // [bytes] more, where that is behind the end of a row

    __device__ __forceinline__ explicit Step(const StripPart &part) {
        const auto row = static_cast<uint32_t>(min(part.row_vectors, uint64_t{warp_threads + 1}));
        const uint32_t rows = warp_threads / row;
        columns = warp_threads - rows * row;
        to = rows * part.to_stride + columns * sizeof(V);
        from = rows * part.from_stride + columns * sizeof(V);
        to_wrap = part.to_stride - part.row_vectors * sizeof(V);
        from_wrap = part.from_stride - part.row_vectors * sizeof(V);
    }
};

template <class V>
__device__ __forceinline__ void copy_piece(const StripPart &part, uint64_t first, int lane) {
    const Step<V> step(part);
    const uint64_t vector = first + static_cast<uint64_t>(lane);
    uint64_t row = 0, column = vector;
    if (part.row_vectors != part.vectors) {
        row = vector / part.row_vectors;
        column = vector - row * part.row_vectors;
    }
    uint64_t to = row * part.to_stride + column * sizeof(V), from = row * part.from_stride + column * sizeof(V);
    V value[in_flight];
    uint64_t at[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
        at[i] = to;
        if (vector + i * warp_threads < part.vectors) value[i] = __ldcs(reinterpret_cast<const V *>(part.from + from));
        to += step.to;
        from += step.from;
        column += step.columns;
        if (column >= part.row_vectors) {
            column -= part.row_vectors;
            to += step.to_wrap;
            from += step.from_wrap;
        }
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
        if (vector + i * warp_threads < part.vectors) *reinterpret_cast<V *>(part.to + at[i]) = value[i];
    }
}

__global__ void __launch_bounds__(strip_threads, 1) copy_strips_kernel(const __grid_constant__ StripBatch batch) {
    const int lane = static_cast<int>(threadIdx.x % warp_threads);
    const uint64_t warps = uint64_t{gridDim.x} * (strip_threads / warp_threads);
    const uint64_t pieces = batch.parts[batch.count - 1].end_piece;
    uint64_t begin = 0;  // piece that the part begins with
    int at = 0;
    for (uint64_t piece = blockIdx.x + uint64_t{threadIdx.x / warp_threads} * gridDim.x; piece < pieces; piece += warps) {
        while (piece >= batch.parts[at].end_piece) begin = batch.parts[at++].end_piece;
        const StripPart &part = batch.parts[at];
        const uint64_t first = (piece - begin) * piece_vectors;
        switch (batch.widths[at]) {
            case 16: copy_piece<uint4>(part, first, lane); break;
            case 8: copy_piece<uint2>(part, first, lane); break;
            case 4: copy_piece<unsigned int>(part, first, lane); break;
            case 2: copy_piece<unsigned short>(part, first, lane); break;
            default: copy_piece<unsigned char>(part, first, lane); break;
        }
    }
}

}  // namespace

Result load_strips() { return load_each({address_of(&copy_strips_kernel)}); }

Result copy_strips(const StripCopy *copies, size_t count, int multiprocessors, CUstream_st *stream) {
    cudaError_t error = cudaSuccess;
    for_strip_batches(copies, count, [&](const StripBatch &batch) {
        if (error != cudaSuccess) return;
        const auto blocks = static_cast<unsigned>(std::min(batch.pieces(), static_cast<uint64_t>(std::max(multiprocessors, 1))));
        copy_strips_kernel<<<blocks, strip_threads, 0, stream>>>(batch);
        error = cudaGetLastError();
    });
    return error;
}

}  // namespace moelink::kernels::cuda
