// Loading all kernels at once, and the words for CUDA errors.
#include "launch.hpp"

#include <cstdio>

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

Result load_dispatch();
Result load_combine();
Result load_gather();
Result load_route();
Result load_load_window();
Result load_strips();
Result load_arrange();
Result load_fifos();

Result load_kernels() {
    for (Result (*load)() :
         {&load_dispatch, &load_combine, &load_gather, &load_route, &load_load_window, &load_strips, &load_arrange, &load_fifos}) {
        if (Result result = load(); result != cudaSuccess) return result;
    }
    return cudaSuccess;
}

const char *error_text(Result result) {
    thread_local char text[256];
    const auto error = static_cast<cudaError_t>(result);
    std::snprintf(text, sizeof text, "%s (%s)", cudaGetErrorName(error), cudaGetErrorString(error));
    return text;
}

}  // namespace moelink::kernels::cuda
