// Pieces of the gathering manager around NCCL's collectives: padding, masking and moving rows.
#include "common/load.cuh"
#include "common/rows.cuh"
#include "common/sum.cuh"

#include <algorithm>

namespace moelink::kernels::cuda {

namespace {

constexpr int small_threads = 256;

__global__ void gather_ids_kernel(const GatherIds params) {
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = max(0, min(tokens, *params.tokens_device));
    const int64_t total = int64_t{params.padded} * params.top_k;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += int64_t{gridDim.x} * blockDim.x) {
        int64_t id = -1;
        if (params.ids != nullptr && i < int64_t{tokens} * params.top_k) {
            id = params.ids_bytes == 8 ? static_cast<const int64_t *>(params.ids)[i] : static_cast<const int32_t *>(params.ids)[i];
        }
        params.out_ids[i] = id < 0 || id > INT32_MAX ? -1 : static_cast<int32_t>(id);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *params.out_tokens = tokens;
}

__global__ void mask_ids_kernel(const MaskIds params) {
    const ExpertRanks &owners = params.owners;
    const int64_t rows = int64_t{params.ranks} * params.capacity;
    for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows; row += int64_t{gridDim.x} * blockDim.x) {
        const bool used = row % params.capacity < params.tokens[row / params.capacity];
        bool local = false;
        for (int k = 0; k < params.top_k; ++k) {
            int32_t &id = params.ids[row * params.top_k + k];
            const bool here = used && owners.rank_of(id) == params.rank;
            local = local || here;
            if (!here) id = params.invalid_id;
        }
        params.local[row] = local ? 1 : 0;
    }
}

__global__ void __launch_bounds__(block_threads, 1) copy_rows_kernel(const CopyRows params, int32_t width) {
    int64_t rows = params.rows;
    if (params.rows_device != nullptr) rows = max(int64_t{0}, min(rows, int64_t{*params.rows_device}));
    const Teams teams((rows + gridDim.x - 1) / gridDim.x);
    for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < rows; row += int64_t{gridDim.x} * teams.count) {
        if (params.group_counts != nullptr && row % params.group_rows >= params.group_counts[row / params.group_rows]) continue;
        unsigned char *to = params.target + static_cast<uint64_t>(row) * params.target_stride;
        if (params.keep == nullptr || params.keep[row] != 0) {
            copy_row(teams.width, teams.lane, params.source + static_cast<uint64_t>(row) * params.source_stride, to, params.row_bytes, width);
        } else {
            for (uint64_t i = static_cast<uint64_t>(teams.lane); i < params.row_bytes; i += static_cast<uint64_t>(teams.width)) to[i] = 0;
        }
    }
}

template <class T, int Count>
__global__ void __launch_bounds__(block_threads, 1) add_planes_kernel(const AddPlanes params) {
    using P = Pack<T, Count>;
    int64_t rows = params.rows;
    if (params.rows_device != nullptr) rows = max(int64_t{0}, min(rows, int64_t{*params.rows_device}));
    const int64_t packs = static_cast<int64_t>(params.row_bytes / sizeof(P));
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * packs; i += int64_t{gridDim.x} * blockDim.x) {
        const int64_t row = i / packs, at = i - row * packs;
        Sum<T, Count> sum;
        for (int32_t plane = 0; plane < params.planes; ++plane) {
            const unsigned char *from = params.source + static_cast<uint64_t>(plane) * params.plane_bytes + static_cast<uint64_t>(row) * params.row_bytes;
            sum.add(reinterpret_cast<const P *>(from)[at], 1.0f, false);
        }
        reinterpret_cast<P *>(params.target + static_cast<uint64_t>(row) * params.target_stride)[at] = sum.rounded();
    }
}

using AddKernel = void (*)(AddPlanes);

// `whole`: rows are whole 16-byte vectors.
AddKernel choose_add(int32_t value_type, bool whole) {
    switch (value_type) {
        case value_f32: return whole ? &add_planes_kernel<float, 4> : &add_planes_kernel<float, 1>;
        case value_f16: return whole ? &add_planes_kernel<__half, 8> : &add_planes_kernel<__half, 1>;
        default: return whole ? &add_planes_kernel<__nv_bfloat16, 8> : &add_planes_kernel<__nv_bfloat16, 1>;
    }
}

unsigned grid_for(int64_t items, int each) { return static_cast<unsigned>(std::clamp<int64_t>((items + each - 1) / each, 1, 128)); }

}  // namespace

Result load_gather() {
    for (int32_t type : {value_f32, value_f16, value_bf16}) {
        if (Result result = load_each({address_of(choose_add(type, true)), address_of(choose_add(type, false))}); result != cudaSuccess) return result;
    }
    return load_each({address_of(&gather_ids_kernel), address_of(&mask_ids_kernel), address_of(&copy_rows_kernel)});
}

Result gather_ids(const GatherIds &params, CUstream_st *stream) {
    gather_ids_kernel<<<grid_for(int64_t{params.padded} * params.top_k, small_threads), small_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

Result mask_ids(const MaskIds &params, CUstream_st *stream) {
    mask_ids_kernel<<<grid_for(int64_t{params.ranks} * params.capacity, small_threads), small_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

Result copy_rows(const CopyRows &params, CUstream_st *stream) {
    const int32_t width = access_width(reinterpret_cast<uint64_t>(params.source) | reinterpret_cast<uint64_t>(params.target) |
                                       params.source_stride | params.target_stride | params.row_bytes);
    copy_rows_kernel<<<grid_for(params.rows, 1), block_threads, 0, stream>>>(params, width);
    return cudaGetLastError();
}

Result add_planes(const AddPlanes &params, CUstream_st *stream) {
    const int32_t width = access_width(reinterpret_cast<uint64_t>(params.source) | reinterpret_cast<uint64_t>(params.target) | params.plane_bytes |
                                       params.target_stride | params.row_bytes);
    choose_add(params.value_type, width == 16)<<<grid_for(params.rows, 1), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
