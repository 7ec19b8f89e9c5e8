// The kernels of dispatch for rows that go to every rank.
#include "moe/dispatch_kernel.cuh"

namespace moelink::kernels::cuda {

DispatchKernel to_all_dispatch_kernel(int ids_bytes, int ranks, bool few) { return choose_dispatch<false, true>(ids_bytes, ranks, few); }

DispatchKernel quantized_to_all_dispatch_kernel(int ids_bytes, int ranks, bool few) { return choose_dispatch<true, true>(ids_bytes, ranks, few); }

}  // namespace moelink::kernels::cuda
