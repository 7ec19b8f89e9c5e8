// The kernels of dispatch for rows that are quantized on their way.
#include "moe/dispatch_kernel.cuh"

namespace moelink::kernels::cuda {

DispatchKernel quantized_dispatch_kernel(int ids_bytes, int ranks, bool few) { return choose_dispatch<true, false>(ids_bytes, ranks, few); }

}  // namespace moelink::kernels::cuda
