#include "launches.cuh"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_status.cuh"

namespace perf {

namespace {

// The kernels belong to the library's own copy of the runtime, so the driver is asked; it is not linked.
template <class Function>
Function driver_function(const char *name, unsigned version) {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result), name);
    if (found == nullptr || result != cudaDriverEntryPointSuccess) {
        throw std::runtime_error(std::string(name) + " is not in this driver");
    }
    return reinterpret_cast<Function>(found);
}

void check_driver(CUresult status, const char *what) {
    if (status != CUDA_SUCCESS) {
        throw std::runtime_error(std::string(what) + ": CUDA error " + std::to_string(static_cast<int>(status)));
    }
}

int parameter_bytes(const CUDA_KERNEL_NODE_PARAMS &node) {
    static const auto of_function = driver_function<decltype(&cuFuncGetParamInfo)>("cuFuncGetParamInfo", 12040);
    static const auto of_kernel = driver_function<decltype(&cuKernelGetParamInfo)>("cuKernelGetParamInfo", 12040);
    size_t end = 0;
    for (size_t i = 0;; ++i) {
        size_t offset = 0;
        size_t size = 0;
        const CUresult status =
            node.func != nullptr ? of_function(node.func, i, &offset, &size) : of_kernel(node.kern, i, &offset, &size);
        if (status == CUDA_ERROR_INVALID_VALUE) {
            return static_cast<int>(end);  // there is no such parameter
        }
        check_driver(status, "the parameters of a kernel");
        end = std::max(end, offset + size);
    }
}

constexpr int step = 64;
constexpr int most_bytes = 4096;

template <int bytes>
struct Bytes {
    char data[bytes];
};
template <int bytes>
__global__ void bare_kernel(const Bytes<bytes>) {}

template <int... i>
std::array<const void *, sizeof...(i)> table_of(std::integer_sequence<int, i...>) {
    return {reinterpret_cast<const void *>(&bare_kernel<step * (i + 1)>)...};
}

// Kernel i takes step * (i + 1) bytes.
const auto &bare_kernels() {
    static const auto table = table_of(std::make_integer_sequence<int, most_bytes / step>());
    return table;
}

}  // namespace

std::vector<Launch> launches_of(cudaGraph_t graph) {
    static const auto kernel_params = driver_function<decltype(&cuGraphKernelNodeGetParams)>("cuGraphKernelNodeGetParams", 12000);
    size_t count = 0;
    check(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
    std::vector<cudaGraphNode_t> nodes(count);
    check(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
    std::vector<Launch> launches;
    for (cudaGraphNode_t node : nodes) {
        cudaGraphNodeType type;
        check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
        if (type != cudaGraphNodeTypeKernel) {
            continue;
        }
        CUDA_KERNEL_NODE_PARAMS params{};
        check_driver(kernel_params(node, &params), "cuGraphKernelNodeGetParams");
        launches.push_back({static_cast<int>(params.gridDimX * params.gridDimY * params.gridDimZ), parameter_bytes(params)});
    }
    return launches;
}

void load_bare_kernels() {
    for (const void *kernel : bare_kernels()) {
        cudaFuncAttributes attributes;
        check(cudaFuncGetAttributes(&attributes, kernel), "loading a kernel");
    }
}

void launch_bare(int parameter_bytes, cudaStream_t stream) {
    static const Bytes<most_bytes> data{};
    const int kernel = std::clamp(parameter_bytes / step, 1, most_bytes / step) - 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(32);
    config.stream = stream;
    void *arguments[] = {const_cast<Bytes<most_bytes> *>(&data)};
    check(cudaLaunchKernelExC(&config, bare_kernels()[static_cast<size_t>(kernel)], arguments), "cudaLaunchKernelExC");
}

}  // namespace perf
