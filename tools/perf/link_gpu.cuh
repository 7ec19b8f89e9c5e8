// The GPUs that moelink-perf link measures, and what it measures of two of them beside rates and flags.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cuda_status.cuh"
#include "gpu.cuh"
#include "link.hpp"

namespace perf {

// One GPU with its stream, events and buffers.
class Gpu {
public:
    Gpu(int ordinal, size_t size) : bytes(size), ordinal_(ordinal) {
        use();
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        check(cudaEventCreate(&begin), "cudaEventCreate");
        check(cudaEventCreate(&end), "cudaEventCreate");
        check(cudaMalloc(reinterpret_cast<void **>(&source), bytes), "cudaMalloc");
        check(cudaMalloc(reinterpret_cast<void **>(&target), bytes), "cudaMalloc");
        check(cudaMalloc(reinterpret_cast<void **>(&words), all_word_bytes), "cudaMalloc");
        check(cudaMemset(source, 0x3c + ordinal, bytes), "cudaMemset");
        check(cudaMemset(words, 0, all_word_bytes), "cudaMemset");
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    Gpu(const Gpu &) = delete;
    Gpu &operator=(const Gpu &) = delete;
    ~Gpu() {
        cudaSetDevice(ordinal_);
        cudaFree(source);
        cudaFree(target);
        cudaFree(words);
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
        cudaStreamDestroy(stream);
    }
    void use() const { check(cudaSetDevice(ordinal_), "cudaSetDevice"); }
    int ordinal() const { return ordinal_; }
    unsigned *word(int index) const { return words + index * (word_bytes / sizeof(unsigned)); }
    double elapsed_s() const {
        float milliseconds = 0;
        use();
        check(cudaEventSynchronize(end), "waiting for a GPU");
        check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
        return milliseconds * 1e-3;
    }

    const size_t bytes;  // of source and of target
    static constexpr size_t word_bytes = 256;
    static constexpr size_t all_word_bytes = 3 * word_bytes;
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    uint4 *source = nullptr;
    uint4 *target = nullptr;
    unsigned *words = nullptr;

private:
    int ordinal_;
};

inline double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// What no dispatch and combine can be faster than: two kernels one after the other, each of which pushes rows to the other GPU, waits for
// as many from there, and does nothing else. No routes are found, nothing is unpacked or added.
void measure_bare_pairs(Gpu &first, Gpu &second, int multiprocessors, LinkReport &report, double timeout_s);

}  // namespace perf
