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

}  // namespace

Result load_dispatch() {
    for (int ids_bytes : {4, 8}) {
        for (int ranks : {1, max_cuda_ranks}) {
            for (bool few : {false, true}) {
                for (bool quantized : {false, true}) {
                    const Result result = load_each({address_of(choose(quantized, false, ids_bytes, ranks, few)),
                                                     address_of(choose(quantized, true, ids_bytes, ranks, few))});
                    if (result != cudaSuccess) return result;
                }
            }
        }
    }
    return cudaSuccess;
}

Result dispatch(const DispatchParams &params, const Launch &launch) {
    const int ranks = params.workspace.ranks;
    const bool few = params.packets != 0 && params.tokens <= std::min(batch_tokens, params.workspace.dispatch_packet_rows);
    const DispatchKernel kernel = choose(params.quantize != quantize_none, params.spread != spread_owners, params.ids_bytes, ranks, few);
    return launch_kernel(kernel, params, launch, blocks_wanted(least_blocks, params.workspace.capacity, launch.tokens));
}

}  // namespace moelink::kernels::cuda
