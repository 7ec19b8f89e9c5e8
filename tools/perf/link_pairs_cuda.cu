#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "link_gpu.cuh"

namespace perf {

namespace {

constexpr int push_threads = 512;
constexpr size_t row_bytes = 14336;  // of the headline: 7168 values of bf16
constexpr size_t row_vectors = row_bytes / sizeof(uint4);
constexpr int depth = 4;  // vectors of a thread in flight
constexpr int pairs = 20;
constexpr int repetitions = 25;

// Where the pushes of one GPU go and from where it awaits the other's. Two planes take turns, as those of dispatch and combine do, so that
// none is overwritten before it was waited for.
struct BarePush {
    const uint4 *source;
    uint4 *theirs;
    const uint4 *mine;
    unsigned *their_count;
    const unsigned *my_count;
    unsigned expected;  // of my_count, when all blocks of the other's push are done
    unsigned tag;       // of this push
    size_t vectors;
    unsigned long long timeout_ns;
    unsigned *late;
};

// `tagged`: each vector says itself that it has come, and is awaited; else a fence and a count stand behind each block's.
template <bool tagged>
__global__ void __launch_bounds__(push_threads, 1) bare_push_kernel(const BarePush push) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const size_t stride = static_cast<size_t>(gridDim.x) * push_threads, begin = static_cast<size_t>(blockIdx.x) * push_threads + threadIdx.x;
    for (size_t first = begin; first < push.vectors; first += depth * stride) {
        uint4 value[depth];
#pragma unroll
        for (int d = 0; d < depth; ++d) {
            if (first + d * stride < push.vectors) {
                value[d] = push.source[first + d * stride];
            }
        }
#pragma unroll
        for (int d = 0; d < depth; ++d) {
            if (first + d * stride < push.vectors) {
                if (tagged) {
                    store_whole(push.theirs + first + d * stride, {value[d].x, value[d].y, value[d].z, push.tag});
                } else {
                    push.theirs[first + d * stride] = value[d];
                }
            }
        }
    }
    const unsigned long long start = now_ns();
    const auto await = [&](auto ready) {
        while (!ready()) {
            if (now_ns() - start > push.timeout_ns) {
                *push.late = 1;
                return;
            }
        }
    };
    if (tagged) {
        for (size_t i = begin; i < push.vectors; i += stride) {
            await([&] { return load_whole(push.mine + i).w == push.tag; });
        }
        return;
    }
    __syncthreads();
    if (threadIdx.x > 0) {
        return;
    }
    fence();
    add_relaxed(push.their_count, 1);
    if (blockIdx.x == 0) {
        await([&] { return acquire_word(push.my_count) - push.expected < 0x80000000u; });
    }
}

// Holds a stream until everything behind it is launched.
__global__ void gate_kernel(const volatile unsigned *open, unsigned number, unsigned long long timeout_ns, unsigned *late) {
    const unsigned long long start = now_ns();
    while (*open < number) {
        if (now_ns() - start > timeout_ns) {
            *late = 1;
            return;
        }
    }
}

class Gate {
public:
    Gate() { check(cudaHostAlloc(reinterpret_cast<void **>(&open_), sizeof *open_, cudaHostAllocPortable), "cudaHostAlloc"), *open_ = 0; }
    Gate(const Gate &) = delete;
    Gate &operator=(const Gate &) = delete;
    ~Gate() { cudaFreeHost(open_); }
    const volatile unsigned *word() const { return open_; }
    void open(unsigned number) { *static_cast<volatile unsigned *>(open_) = number; }

private:
    unsigned *open_ = nullptr;
};

// Words of a GPU: 0 counts the other's blocks, 2 tells of a wait that was too long.
template <bool tagged>
double bare_pair_us(Gpu &first, Gpu &second, size_t rows, int blocks, double timeout_s) {
    const auto timeout_ns = static_cast<unsigned long long>(timeout_s * 1e9);
    const size_t vectors = rows * row_vectors;
    Gate gate;
    unsigned counted = 0, tag = 0;
    std::vector<double> times;
    for (Gpu *gpu : {&first, &second}) {
        gpu->use();
        check(cudaMemset(gpu->words, 0, Gpu::all_word_bytes), "cudaMemset");
        check(cudaMemset(gpu->target, 0, 2 * vectors * sizeof(uint4)), "cudaMemset");
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    for (int repetition = 0; repetition < repetitions; ++repetition) {
        for (Gpu *gpu : {&first, &second}) {
            Gpu &other = gpu == &first ? second : first;
            gpu->use();
            gate_kernel<<<1, 1, 0, gpu->stream>>>(gate.word(), static_cast<unsigned>(repetition) + 1, timeout_ns, gpu->word(2));
            check(cudaEventRecord(gpu->begin, gpu->stream), "cudaEventRecord");
            for (unsigned i = 0; i < 2 * pairs; ++i) {
                const size_t plane = i % 2 * vectors;
                const BarePush push = {gpu->source, other.target + plane, gpu->target + plane, other.word(0), gpu->word(0),
                                       counted + (i + 1) * static_cast<unsigned>(blocks), tag + i + 1, vectors, timeout_ns, gpu->word(2)};
                cudaLaunchConfig_t config{};
                config.gridDim = dim3(static_cast<unsigned>(blocks));
                config.blockDim = dim3(push_threads);
                config.stream = gpu->stream;
                cudaLaunchAttribute early{};
                early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
                early.val.programmaticStreamSerializationAllowed = 1;
                config.attrs = &early;
                config.numAttrs = 1;
                check(cudaLaunchKernelEx(&config, bare_push_kernel<tagged>, push), "launching a push");
            }
            check(cudaEventRecord(gpu->end, gpu->stream), "cudaEventRecord");
        }
        gate.open(static_cast<unsigned>(repetition) + 1);
        counted += 2 * pairs * static_cast<unsigned>(blocks);
        tag += 2 * pairs;
        times.push_back(std::max(first.elapsed_s(), second.elapsed_s()) / pairs * 1e6);
        for (Gpu *gpu : {&first, &second}) {
            unsigned late = 0;
            gpu->use();
            check(cudaMemcpy(&late, gpu->word(2), sizeof late, cudaMemcpyDeviceToHost), "cudaMemcpy");
            if (late != 0) {
                throw std::runtime_error("pairs of pushes: rows of the other GPU did not come in time");
            }
        }
    }
    return median(times);
}

}  // namespace

void measure_bare_pairs(Gpu &first, Gpu &second, int multiprocessors, LinkReport &report, double timeout_s) {
    constexpr size_t most_tagged = 512;  // with more, what polls is in the way of what comes
    for (const size_t rows : {1, 64, 128, 256, 512, 1024, 2048, 4096}) {
        const std::string what = "pair of pushes of " + std::to_string(rows) + (rows == 1 ? " row" : " rows") + " of 14336 bytes, ";
        if (2 * rows * row_bytes > first.bytes) {
            report.skipped.push_back(what + "which do not fit --megabytes");
            continue;
        }
        report.figures.push_back({what + "fence and count", bare_pair_us<false>(first, second, rows, multiprocessors, timeout_s), "us"});
        if (rows <= most_tagged) {
            report.figures.push_back({what + "no flag", bare_pair_us<true>(first, second, rows, multiprocessors, timeout_s), "us"});
        }
    }
}

}  // namespace perf
