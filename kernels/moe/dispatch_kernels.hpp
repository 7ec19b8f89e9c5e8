// The kernels of dispatch, in sources of their own since each takes long to compile.
#pragma once

#include "launch.hpp"

namespace moelink::kernels::cuda {

using DispatchKernel = void (*)(DispatchParams);

DispatchKernel quantized_dispatch_kernel(int ids_bytes, int ranks, bool few);         // dispatch_quantized.cu
DispatchKernel to_all_dispatch_kernel(int ids_bytes, int ranks, bool few);            // dispatch_to_all.cu
DispatchKernel quantized_to_all_dispatch_kernel(int ids_bytes, int ranks, bool few);

}  // namespace moelink::kernels::cuda
