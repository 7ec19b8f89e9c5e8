// What a captured call launches, and empty kernels with as many parameter bytes to time beside it.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "device.hpp"

namespace perf {

// The kernels of a graph, whichever library they are from. Throws std::runtime_error.
std::vector<Launch> launches_of(cudaGraph_t graph);

// To be called before anything waits on the device: a kernel that is loaded behind one that waits would wait with it.
void load_bare_kernels();
// One cudaLaunchKernelExC of an empty kernel with parameter_bytes of parameters, rounded down to 64, at most 4096.
void launch_bare(int parameter_bytes, cudaStream_t stream);

}  // namespace perf
