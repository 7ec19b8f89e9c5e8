// Launching dispatch; the kernels for rows that travel as they are.
#include "common/load.cuh"
#include "common/start.cuh"
#include "moe/dispatch_kernel.cuh"

namespace moelink::kernels::cuda {

namespace {

constexpr int least_blocks = 16;

DispatchKernel choose(bool quantized, bool to_all, int ids_bytes, int ranks, bool few) {
    if (to_all) return quantized ? quantized_to_all_dispatch_kernel(ids_bytes, ranks, few) : to_all_dispatch_kernel(ids_bytes, ranks, few);
    return quantized ? quantized_dispatch_kernel(ids_bytes, ranks, few) : choose_dispatch<false, false>(ids_bytes, ranks, few);
}

// Who quantizes reads each row from the multiprocessor's cache twice, and so is better off with more of it.
constexpr bool has_bulk(bool quantized, bool few) { return !quantized && !few; }

}  // namespace

Result load_dispatch() {
    for (int ids_bytes : {4, 8}) {
        for (int ranks : {1, max_cuda_ranks}) {
            for (bool to_all : {false, true}) {
                for (bool quantized : {false, true}) {
                    for (bool few : {false, true}) {
                        const void *const kernel = address_of(choose(quantized, to_all, ids_bytes, ranks, few));
                        const Result result = has_bulk(quantized, few) ? load_each_with_bulk({kernel}) : load_each({kernel});
                        if (result != cudaSuccess) return result;
                    }
                }
            }
        }
    }
    return cudaSuccess;
}

Result dispatch(const DispatchParams &params, const Launch &launch) {
    const int ranks = params.workspace.ranks;
    const bool few = params.packets != 0 && params.tokens <= params.workspace.dispatch_packet_rows;
    const bool quantized = params.quantize != quantize_none;
    const DispatchKernel kernel = choose(quantized, params.spread != spread_owners, params.ids_bytes, ranks, few);
    return launch_kernel(kernel, params, launch, blocks_wanted(least_blocks, params.workspace.capacity, launch.tokens),
                         has_bulk(quantized, few));
}

}  // namespace moelink::kernels::cuda
