// Launching a kernel of blocks that wait for other ranks.
#pragma once

#include "common/bulk.cuh"
#include "common/rows.cuh"

#include <algorithm>

namespace moelink::kernels::cuda {

// Blocks for a rank's tokens, and for as many rows of other ranks as may come where its own tokens are few.
inline int blocks_wanted(int least, int32_t capacity, int32_t tokens) { return std::max(least + capacity / 4, 4 * tokens); }

// As many blocks as are wanted and allowed. `bulk`: with memory for bulk copies.
template <class Params>
Result launch_kernel(void (*kernel)(Params), const Params &params, const Launch &launch, int wanted, bool bulk = false) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::clamp(wanted, 1, launch.blocks)));
    config.blockDim = dim3(block_threads);
    config.dynamicSmemBytes = bulk && bulk_memory_allowed ? sizeof(BulkMemory) : 0;
    config.stream = launch.stream;
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = launch.early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace moelink::kernels::cuda
