// Limits of GPUs and of the links between two of them: one process, plain cudaMalloc and peer access.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "link.hpp"
#include "link_gpu.cuh"

namespace perf {

namespace {

constexpr int copy_threads = 1024;
constexpr int rounds = 7;

// `passes` copies of the buffer, so that the time is long against the start of a kernel. Every store is 16 bytes wide; `from` and
// `to` may be here or on the peer.
__global__ void __launch_bounds__(copy_threads) copy_kernel(uint4 *to, const uint4 *from, size_t count, int passes) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    const size_t first = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    constexpr int depth = 8;  // loads in flight a thread
    for (int pass = 0; pass < passes; ++pass) {
        size_t i = first;
        for (; i + (depth - 1) * stride < count; i += depth * stride) {
            uint4 value[depth];
#pragma unroll
            for (int d = 0; d < depth; ++d) {
                value[d] = __ldcs(from + i + d * stride);
            }
#pragma unroll
            for (int d = 0; d < depth; ++d) {
                __stcs(to + i + d * stride, value[d]);
            }
        }
        for (; i < count; i += stride) {
            __stcs(to + i, __ldcs(from + i));
        }
    }
}

// Stores alone, of values made in registers: what a push can reach when reading costs nothing.
__global__ void __launch_bounds__(copy_threads) push_kernel(uint4 *to, size_t count, int passes) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (int pass = 0; pass < passes; ++pass) {
        for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
            const auto word = static_cast<unsigned>(i) * 2654435761u + static_cast<unsigned>(pass);
            to[i] = make_uint4(word, word ^ 0x5bd1e995u, word + 77u, ~word);
        }
    }
}

__global__ void empty_kernel() {}

__device__ void release_word(unsigned *word, unsigned value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// Two of these throw a number to and fro; `mine` is local, `theirs` the other's word. The wait is bounded; *done tells how far it
// came.
__global__ void flag_kernel(unsigned *mine, unsigned *theirs, unsigned throws, bool serves, unsigned long long timeout_ns,
                            unsigned *done) {
    const unsigned long long start = now_ns();
    unsigned round = 1;
    for (; round <= throws; ++round) {
        if (serves) {
            release_word(theirs, round);
        }
        while (acquire_word(mine) < round) {
            if (now_ns() - start > timeout_ns) {
                *done = round - 1;
                return;
            }
        }
        if (!serves) {
            release_word(theirs, round);
        }
    }
    *done = throws;
}

// Each of two GPUs tells the other a number by as many flags as there are threads, and goes on when as many have come: what meeting
// that many peers costs. Bounded like flag_kernel.
__global__ void exchange_kernel(unsigned *mine, unsigned *theirs, unsigned exchanges, unsigned long long timeout_ns, unsigned *done) {
    const unsigned long long start = now_ns();
    for (unsigned round = 1; round <= exchanges; ++round) {
        release_word(theirs + threadIdx.x, round);
        bool late = false;
        while (!late && acquire_word(mine + threadIdx.x) < round) {
            late = now_ns() - start > timeout_ns;
        }
        if (__syncthreads_or(late)) {
            return;
        }
        if (threadIdx.x == 0) {
            *done = round;
        }
    }
}

// Starts work(gpu, other) on all of them at once and gives the slowest's seconds, median of some rounds after a first one.
template <class Work>
double together_s(const std::vector<Gpu *> &gpus, Work work) {
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
        for (size_t i = 0; i < gpus.size(); ++i) {
            gpus[i]->use();
            check(cudaEventRecord(gpus[i]->begin, gpus[i]->stream), "cudaEventRecord");
            work(*gpus[i], *gpus[(i + 1) % gpus.size()]);
            check(cudaGetLastError(), "launching work");
            check(cudaEventRecord(gpus[i]->end, gpus[i]->stream), "cudaEventRecord");
        }
        double slowest = 0;
        for (const Gpu *gpu : gpus) {
            slowest = std::max(slowest, gpu->elapsed_s());
        }
        if (round > 0) {
            times.push_back(slowest);
        }
    }
    return median(times);
}

double flag_us(Gpu &first, Gpu &second, double timeout_s) {
    constexpr unsigned throws = 2000;
    const auto timeout_ns = static_cast<unsigned long long>(timeout_s * 1e9);
    Gpu *pair[] = {&first, &second};
    const bool alone = &first == &second;
    cudaStream_t other = nullptr;
    second.use();
    check(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
        for (Gpu *gpu : pair) {
            gpu->use();
            check(cudaMemset(gpu->words, 0, Gpu::all_word_bytes), "cudaMemset");
            check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        }
        // Words: 0 is where the first is waited for, 1 the second; 2 how far the first came.
        unsigned *word_of_first = first.word(0);
        unsigned *word_of_second = second.word(1);
        second.use();
        flag_kernel<<<1, 1, 0, other>>>(word_of_second, word_of_first, throws, false, timeout_ns, second.word(1) + 8);
        check(cudaGetLastError(), "launching a flag kernel");
        first.use();
        check(cudaEventRecord(first.begin, first.stream), "cudaEventRecord");
        flag_kernel<<<1, 1, 0, first.stream>>>(word_of_first, word_of_second, throws, true, timeout_ns, first.word(2));
        check(cudaGetLastError(), "launching a flag kernel");
        check(cudaEventRecord(first.end, first.stream), "cudaEventRecord");
        const double seconds = first.elapsed_s();
        unsigned done = 0;
        check(cudaMemcpy(&done, first.word(2), sizeof done, cudaMemcpyDeviceToHost), "cudaMemcpy");
        second.use();
        check(cudaStreamSynchronize(other), "waiting for a GPU");
        if (done != throws) {
            cudaStreamDestroy(other);
            throw std::runtime_error("flag latency: only " + std::to_string(done) + " of " + std::to_string(throws) +
                                     " throws came back in time" + (alone ? " (two blocks of one GPU)" : ""));
        }
        if (round > 0) {
            times.push_back(seconds / (2.0 * throws) * 1e6);
        }
    }
    cudaStreamDestroy(other);
    return median(times);
}

// Flags lie in words 0 and 1, which hold most_flags of them; word 2 tells how far a GPU came.
constexpr int most_flags = static_cast<int>(2 * Gpu::word_bytes / sizeof(unsigned));

double exchange_us(Gpu &first, Gpu &second, int flags, double timeout_s) {
    constexpr unsigned exchanges = 2000;
    const auto timeout_ns = static_cast<unsigned long long>(timeout_s * 1e9);
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
        for (Gpu *gpu : {&first, &second}) {
            gpu->use();
            check(cudaMemset(gpu->words, 0, Gpu::all_word_bytes), "cudaMemset");
            check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        }
        for (const auto &[gpu, other] : {std::pair(&second, &first), std::pair(&first, &second)}) {
            gpu->use();
            check(cudaEventRecord(gpu->begin, gpu->stream), "cudaEventRecord");
            exchange_kernel<<<1, static_cast<unsigned>(flags), 0, gpu->stream>>>(gpu->words, other->words, exchanges, timeout_ns,
                                                                                gpu->word(2));
            check(cudaGetLastError(), "launching an exchange of flags");
            check(cudaEventRecord(gpu->end, gpu->stream), "cudaEventRecord");
        }
        // The first was launched last, so its time has no wait for the other's launch in it.
        const double seconds = first.elapsed_s();
        second.elapsed_s();
        for (const Gpu *gpu : {&first, &second}) {
            unsigned done = 0;
            gpu->use();
            check(cudaMemcpy(&done, gpu->word(2), sizeof done, cudaMemcpyDeviceToHost), "cudaMemcpy");
            if (done != exchanges) {
                throw std::runtime_error("exchange of " + std::to_string(flags) + " flags: only " + std::to_string(done) + " of " +
                                         std::to_string(exchanges) + " were done in time");
            }
        }
        if (round > 0) {
            times.push_back(seconds / exchanges * 1e6);
        }
    }
    return median(times);
}

double empty_node_us(Gpu &gpu) {
    constexpr int nodes = 1000;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    gpu.use();
    check(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < nodes; ++i) {
        empty_kernel<<<1, 1, 0, gpu.stream>>>();
    }
    check(cudaStreamEndCapture(gpu.stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
    const double seconds = together_s({&gpu}, [&](Gpu &one, Gpu &) { cudaGraphLaunch(ready, one.stream); });
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
    return seconds / nodes * 1e6;
}

std::string blocks_text(int blocks) {
    return std::to_string(blocks) + (blocks == 1 ? " block" : " blocks");
}

double push_gbps(Gpu &first, Gpu &second, size_t bytes, int blocks) {
    // About as long whatever the number of blocks.
    const int passes = blocks >= 16 ? 4 : 1;
    const double seconds = together_s({&first, &second}, [&](Gpu &gpu, Gpu &other) {
        copy_kernel<<<static_cast<unsigned>(blocks), copy_threads, 0, gpu.stream>>>(other.target, gpu.source,
                                                                                    bytes / sizeof(uint4), passes);
    });
    return static_cast<double>(bytes) * passes / seconds * 1e-9;
}

void measure_pair(Gpu &first, Gpu &second, size_t bytes, int multiprocessors, LinkReport &report, double timeout_s) {
    const size_t count = bytes / sizeof(uint4);
    const std::vector<Gpu *> both = {&first, &second};
    std::vector<int> sizes = {1, 2, 4, 8, 16, 32, 64};
    sizes.push_back(multiprocessors);
    for (const int blocks : sizes) {
        report.figures.push_back({"push, 16-byte stores, both directions, " + blocks_text(blocks),
                                  push_gbps(first, second, bytes, blocks), "GB/s"});
    }
    constexpr int passes = 4;
    const auto all = static_cast<unsigned>(multiprocessors);
    const auto rate = [&](double seconds) { return static_cast<double>(bytes) * passes / seconds * 1e-9; };
    report.figures.push_back({"push of values made in registers, both directions, " + blocks_text(multiprocessors),
                              rate(together_s(both,
                                              [&](Gpu &gpu, Gpu &other) {
                                                  push_kernel<<<all, copy_threads, 0, gpu.stream>>>(other.target, count, passes);
                                              })),
                              "GB/s"});
    report.figures.push_back({"pull, 16-byte loads, both directions, " + blocks_text(multiprocessors),
                              rate(together_s(both,
                                              [&](Gpu &gpu, Gpu &other) {
                                                  copy_kernel<<<all, copy_threads, 0, gpu.stream>>>(gpu.target, other.source,
                                                                                                    count, passes);
                                              })),
                              "GB/s"});
    report.figures.push_back({"pull, one direction alone, " + blocks_text(multiprocessors),
                              rate(together_s({&first},
                                              [&](Gpu &gpu, Gpu &) {
                                                  copy_kernel<<<all, copy_threads, 0, gpu.stream>>>(gpu.target, second.source,
                                                                                                    count, passes);
                                              })),
                              "GB/s"});
    report.figures.push_back({"copy engine, both directions",
                              rate(together_s(both,
                                              [&](Gpu &gpu, Gpu &other) {
                                                  for (int pass = 0; pass < passes; ++pass) {
                                                      cudaMemcpyPeerAsync(other.target, other.ordinal(), gpu.source,
                                                                          gpu.ordinal(), bytes, gpu.stream);
                                                  }
                                              })),
                              "GB/s"});
    measure_bare_pairs(first, second, multiprocessors, report, timeout_s);
    report.figures.push_back({"flag between the GPUs, one way, release to acquire", flag_us(first, second, timeout_s), "us"});
    for (const int flags : {1, 3, 7, 15, 31, 71, most_flags - 1}) {
        report.figures.push_back({"flags exchanged as with " + std::to_string(flags) + (flags == 1 ? " peer" : " peers"),
                                  exchange_us(first, second, flags, timeout_s), "us", flags});
    }
}

}  // namespace

LinkReport measure_cuda_link(const LinkOptions &options) {
    LinkReport report;
    int gpus = 0;
    const cudaError_t found = cudaGetDeviceCount(&gpus);
    if (found != cudaSuccess || gpus == 0) {
        report.skipped.push_back(std::string("everything on GPUs: ") +
                                 (found != cudaSuccess ? cudaGetErrorString(found) : "no GPU is found"));
        return report;
    }
    const int first = options.gpus[0];
    const int second = options.gpus[1];
    if (first >= gpus || first < 0) {
        throw std::invalid_argument("--gpus names GPU " + std::to_string(first) + "; there are " + std::to_string(gpus));
    }
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, first), "cudaDeviceGetAttribute");
    const auto bytes = static_cast<size_t>(options.megabytes * 1e6) / sizeof(uint4) * sizeof(uint4);
    const auto name = [&](int ordinal) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
        report.devices.push_back(std::string(properties.name) + " #" + std::to_string(ordinal));
    };
    name(first);
    Gpu here(first, bytes);
    report.figures.push_back({"empty kernel as a node of a graph", empty_node_us(here), "us"});
    constexpr int passes = 4;
    const size_t count = bytes / sizeof(uint4);
    report.figures.push_back(
        {"local copy by 16-byte accesses, " + blocks_text(multiprocessors) + ", bytes copied",
         static_cast<double>(bytes) * passes /
             together_s({&here},
                        [&](Gpu &gpu, Gpu &) {
                            copy_kernel<<<static_cast<unsigned>(multiprocessors), copy_threads, 0, gpu.stream>>>(
                                gpu.target, gpu.source, count, passes);
                        }) *
             1e-9,
         "GB/s"});
    report.figures.push_back({"local copy by cudaMemcpyAsync, bytes copied",
                              static_cast<double>(bytes) * passes /
                                  together_s({&here},
                                             [&](Gpu &gpu, Gpu &) {
                                                 for (int pass = 0; pass < passes; ++pass) {
                                                     cudaMemcpyAsync(gpu.target, gpu.source, bytes, cudaMemcpyDeviceToDevice,
                                                                     gpu.stream);
                                                 }
                                             }) *
                                  1e-9,
                              "GB/s"});
    report.figures.push_back({"flag between two blocks of one GPU, one way", flag_us(here, here, options.timeout), "us"});
    int reachable = 0;
    if (second >= gpus || second < 0 || second == first) {
        report.skipped.push_back(
            "push, pull, copy engine and flag between GPUs: " +
            (gpus == 1 ? std::string("there is one GPU") : "--gpus names no second GPU out of " + std::to_string(gpus)));
        return report;
    }
    check(cudaDeviceCanAccessPeer(&reachable, first, second), "cudaDeviceCanAccessPeer");
    if (!reachable) {
        report.skipped.push_back("push, pull, copy engine and flag between GPUs: GPU " + std::to_string(first) +
                                 " cannot map GPU " + std::to_string(second));
        return report;
    }
    name(second);
    enable_peer(first, second);
    enable_peer(second, first);
    Gpu there(second, bytes);
    measure_pair(here, there, bytes, multiprocessors, report, options.timeout);
    return report;
}

double measure_push_gbps(std::string *why) {
    int gpus = 0;
    int reachable = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) {
        *why = "there are no two GPUs";
        return 0;
    }
    check(cudaDeviceCanAccessPeer(&reachable, 0, 1), "cudaDeviceCanAccessPeer");
    if (!reachable) {
        *why = "GPU 0 cannot map GPU 1";
        return 0;
    }
    constexpr size_t bytes = size_t{256} << 20;
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
    enable_peer(0, 1);
    enable_peer(1, 0);
    double gbps = 0;
    {
        Gpu first(0, bytes);
        Gpu second(1, bytes);
        gbps = push_gbps(first, second, bytes, multiprocessors);
    }
    // Ranks that are threads of this process must find it as it was: see docs/threads.md on peer access.
    for (const int gpu : {0, 1}) {
        check(cudaSetDevice(gpu), "cudaSetDevice");
        check(cudaDeviceDisablePeerAccess(1 - gpu), "cudaDeviceDisablePeerAccess");
    }
    return gbps;
}

}  // namespace perf
