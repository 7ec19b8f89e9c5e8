// Litmus programs: one GPU writes into the memory of the other (or blocks of one GPU into their own), which looks for what the memory
// model forbids, and for what it allows but is seldom seen. Everything waits with a deadline.
#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "cuda_status.cuh"
#include "gpu.cuh"
#include "litmus.hpp"

namespace perf {

namespace {

constexpr int threads = 256;
constexpr int instances = 16;  // of each program, side by side
constexpr int writers = 4;     // blocks that write for one reading block
constexpr uint64_t lost_ns = 5000000;

__device__ uint32_t load_relaxed(const uint32_t *at) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}
__device__ void store_relaxed(uint32_t *at, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ void store_four(uint4 *at, const uint4 &value) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}
__device__ uint4 load_four(const uint4 *at) {
    uint4 value;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(at) : "memory");
    return value;
}

struct Counters {
    unsigned long long trials;
    unsigned long long seen;
    uint32_t late;  // a wait was over without what it waited for
    uint32_t round; // of the programs that are many kernels
};

// One thread's wait until a word that counts up has reached a value. Relaxed.
__device__ bool await(const uint32_t *at, uint32_t value, uint64_t timeout_ns, Counters *counters) {
    const uint64_t start = now_ns();
    while (static_cast<int32_t>(load_relaxed(at) - value) < 0) {
        if (now_ns() - start > timeout_ns) {
            counters->late = 1;
            return false;
        }
    }
    return true;
}

// What both sides of a program know. Data and flags lie at the reader, acknowledgements at the writer.
struct Litmus {
    uint4 *data;         // [instances, writers, threads]
    uint32_t *flags;     // [instances], a line each
    uint32_t *acks;      // [instances], a line each
    Counters *counters;  // of this side
    uint32_t rounds;
    uint64_t timeout_ns;
    bool with_fence;
    bool with_acquire;
};
constexpr int line = 32;  // words

// A block's word back to the writer of its instance, after all that the block did.
__device__ void tell(const Litmus &litmus, uint32_t round, bool with_fence) {
    __syncthreads();
    if (threadIdx.x == 0) {
        if (with_fence) {
            fence();
        }
        store_relaxed(litmus.acks + blockIdx.x * line, round);
    }
}

// A writing block's wait for it; false: it did not come.
__device__ bool heard(const Litmus &litmus, int instance, uint32_t round, bool with_acquire) {
    const uint32_t *ack = litmus.acks + instance * line;
    const bool late = threadIdx.x == 0 && !await(ack, round, litmus.timeout_ns, litmus.counters);
    if (threadIdx.x == 0 && with_acquire) {
        acquire_word(ack);
    }
    return __syncthreads_or(late) == 0;
}

__device__ uint4 value_of(uint32_t round, uint32_t index) {
    const uint32_t word = round * 0x9e3779b9u + index;
    return {word, word ^ 0x5bd1e995u, word + 77u, ~word};
}
__device__ bool same(const uint4 &a, const uint4 &b) {
    return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}

// --- rows, then a count: plain stores of several blocks, each a barrier, a fence and an addition ------------------------------------

__global__ void __launch_bounds__(threads) count_writer(const Litmus litmus) {
    const int instance = static_cast<int>(blockIdx.x) / writers;
    uint4 *mine = litmus.data + blockIdx.x * threads + threadIdx.x;
    for (uint32_t round = 1; round <= litmus.rounds; ++round) {
        if (!heard(litmus, instance, round - 1, true)) {
            return;
        }
        *mine = value_of(round, blockIdx.x * threads + threadIdx.x);
        __syncthreads();
        if (threadIdx.x == 0) {
            if (litmus.with_fence) {
                fence();
            }
            add_relaxed(litmus.flags + instance * line, 1);
        }
    }
}

__global__ void __launch_bounds__(threads) count_reader(const Litmus litmus) {
    const uint4 *all = litmus.data + blockIdx.x * writers * threads;
    uint32_t *flag = litmus.flags + blockIdx.x * line;
    unsigned long long seen = 0;
    uint32_t round = 1;
    for (; round <= litmus.rounds; ++round) {
        uint32_t old = 0;  // brings lines into the cache that are about to be written
        for (int w = 0; w < writers; ++w) {
            old += all[w * threads + threadIdx.x].x;
        }
        if (old == 0x13579bdfu) {
            __nanosleep(20);  // so that the loads are not left out
        }
        const bool late = threadIdx.x == 0 && !await(flag, round * writers, litmus.timeout_ns, litmus.counters);
        if (threadIdx.x == 0 && litmus.with_acquire) {
            acquire_word(flag);
        }
        if (__syncthreads_or(late)) {
            break;
        }
        for (int w = 0; w < writers; ++w) {
            const int index = w * threads + static_cast<int>(threadIdx.x);
            seen += same(all[index], value_of(round, (blockIdx.x * writers * threads) + index)) ? 0 : 1;
        }
        tell(litmus, round, true);
    }
    atomicAdd(&litmus.counters->seen, seen);
    if (threadIdx.x == 0) {
        atomicAdd(&litmus.counters->trials, static_cast<unsigned long long>(round - 1) * writers * threads);
    }
}

// --- whole vectors: one thread stores, another looks, with nothing in between --------------------------------------------------------

__global__ void __launch_bounds__(threads) whole_writer(const Litmus litmus, bool whole) {
    uint4 *mine = litmus.data + blockIdx.x * threads + threadIdx.x;
    for (uint32_t round = 1; round <= litmus.rounds; ++round) {
        const uint4 value = {round, round, round, round};
        whole ? store_whole(mine, value) : store_four(mine, value);
    }
}

// A trial is a look that sees something new. Ends with the last value, or when too long nothing came.
__global__ void __launch_bounds__(threads) whole_reader(const Litmus litmus, bool whole) {
    const uint4 *mine = litmus.data + blockIdx.x * threads + threadIdx.x;
    unsigned long long seen = 0, trials = 0;
    uint32_t last = 0;
    const uint64_t start = now_ns();
    while (last != litmus.rounds) {
        const uint4 value = whole ? load_whole(mine) : load_four(mine);
        seen += value.x == value.y && value.x == value.z && value.x == value.w ? 0 : 1;
        trials += value.x != last ? 1 : 0;
        last = value.x;
        if (now_ns() - start > litmus.timeout_ns) {
            litmus.counters->late = 1;
            break;
        }
    }
    atomicAdd(&litmus.counters->seen, seen);
    atomicAdd(&litmus.counters->trials, trials);
}

// --- vectors with a bit of their own, cleared by who takes them -----------------------------------------------------------------------

constexpr uint32_t come_bit = 1u << 31;

__device__ uint4 vector_of(uint32_t round, uint32_t index) {
    uint4 value = value_of(round, index);
    value.w |= come_bit;
    return value;
}

// Takes a vector and clears it; false: it never came, or was not what was sent. Where many did not come there is no more waiting.
__device__ bool take(uint4 *at, const uint4 &wanted, const Counters *counters) {
    const uint64_t start = now_ns(), patience = *static_cast<const volatile unsigned long long *>(&counters->seen) < 20 ? lost_ns : 0;
    for (;;) {
        const uint4 value = load_whole(at);
        if ((value.w & come_bit) != 0) {
            *at = {0, 0, 0, 0};
            return same(value, wanted);
        }
        if (now_ns() - start > patience) {
            return false;
        }
    }
}

__global__ void __launch_bounds__(threads) vector_writer(const Litmus litmus) {
    const uint32_t index = blockIdx.x * threads + threadIdx.x;
    for (uint32_t round = 1; round <= litmus.rounds; ++round) {
        if (!heard(litmus, static_cast<int>(blockIdx.x), round - 1, litmus.with_fence)) {
            return;
        }
        store_whole(litmus.data + index, vector_of(round, index));
    }
}

__global__ void __launch_bounds__(threads) vector_reader(const Litmus litmus) {
    const uint32_t index = blockIdx.x * threads + threadIdx.x;
    for (uint32_t round = 1; round <= litmus.rounds; ++round) {
        if (!take(litmus.data + index, vector_of(round, index), litmus.counters)) {
            atomicAdd(&litmus.counters->seen, 1ull);
        }
        tell(litmus, round, litmus.with_fence);
    }
    atomicAdd(&litmus.counters->trials, static_cast<unsigned long long>(litmus.rounds));
}

// The same over the ends of kernels: one kernel takes and clears, the next one tells the writer, without any fence.
__device__ void enter() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__global__ void __launch_bounds__(threads) take_kernel(const Litmus litmus) {
    enter();
    const uint32_t index = blockIdx.x * threads + threadIdx.x, round = litmus.counters->round + 1;
    if (!take(litmus.data + index, vector_of(round, index), litmus.counters)) {
        atomicAdd(&litmus.counters->seen, 1ull);
    }
    if (threadIdx.x == 0) {
        atomicAdd(&litmus.counters->trials, static_cast<unsigned long long>(threads));
    }
}

__global__ void tell_kernel(const Litmus litmus) {
    enter();
    store_relaxed(litmus.acks, ++litmus.counters->round);
}

__global__ void hear_kernel(const Litmus litmus) {
    enter();
    await(litmus.acks, litmus.counters->round, litmus.timeout_ns, litmus.counters);
    ++litmus.counters->round;
}

__global__ void __launch_bounds__(threads) send_kernel(const Litmus litmus) {
    enter();
    const uint32_t index = blockIdx.x * threads + threadIdx.x;
    store_whole(litmus.data + index, vector_of(litmus.counters->round, index));
}

// --- the host's part ----------------------------------------------------------------------------------------------------------------

// One side: a GPU with a stream, its memory and its counters.
class Side {
public:
    explicit Side(int ordinal) : ordinal_(ordinal) {
        use();
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        check(cudaMalloc(reinterpret_cast<void **>(&data), data_bytes), "cudaMalloc");
        check(cudaMalloc(reinterpret_cast<void **>(&words), words_bytes), "cudaMalloc");
        check(cudaMalloc(reinterpret_cast<void **>(&counters), sizeof(Counters)), "cudaMalloc");
    }
    Side(const Side &) = delete;
    Side &operator=(const Side &) = delete;
    ~Side() {
        cudaSetDevice(ordinal_);
        cudaStreamSynchronize(stream);
        cudaFree(data);
        cudaFree(words);
        cudaFree(counters);
        cudaStreamDestroy(stream);
    }
    void use() const { check(cudaSetDevice(ordinal_), "cudaSetDevice"); }
    void clear() const {
        use();
        check(cudaMemset(data, 0, data_bytes), "cudaMemset");
        check(cudaMemset(words, 0, words_bytes), "cudaMemset");
        check(cudaMemset(counters, 0, sizeof(Counters)), "cudaMemset");
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    Counters wait() const {
        use();
        check(cudaStreamSynchronize(stream), "waiting for a GPU");
        Counters result;
        check(cudaMemcpy(&result, counters, sizeof result, cudaMemcpyDeviceToHost), "cudaMemcpy");
        return result;
    }

    static constexpr size_t data_bytes = sizeof(uint4) * instances * writers * threads;
    static constexpr size_t words_bytes = sizeof(uint32_t) * instances * line;
    cudaStream_t stream = nullptr;
    uint4 *data = nullptr;
    uint32_t *words = nullptr;
    Counters *counters = nullptr;

private:
    int ordinal_;
};

using Start = std::function<void(const Litmus &litmus, cudaStream_t stream)>;

class Programs {
public:
    Programs(const Side &writer, const Side &reader, const LitmusOptions &options) : writer_(writer), reader_(reader), options_(options) {}

    std::vector<LitmusFinding> run() {
        for (const bool fences : {true, false}) {
            for (const bool acquires : {true, false}) {
                run_one("rows, then a count of them",
                        fences ? acquires ? "fence, acquire" : "fence, no acquire" : acquires ? "no fence, acquire" : "no fence, no acquire",
                        fences && acquires, options_.rounds, fences, acquires,
                        [](const Litmus &litmus, cudaStream_t stream) { count_writer<<<instances * writers, threads, 0, stream>>>(litmus); },
                        [](const Litmus &litmus, cudaStream_t stream) { count_reader<<<instances, threads, 0, stream>>>(litmus); });
            }
        }
        for (const bool whole : {true, false}) {
            run_one("vectors of 16 bytes are whole", whole ? "scalar b128, relaxed" : "vectors of four words, volatile", whole, options_.rounds * 20,
                    false, false,
                    [whole](const Litmus &litmus, cudaStream_t stream) { whole_writer<<<instances, threads, 0, stream>>>(litmus, whole); },
                    [whole](const Litmus &litmus, cudaStream_t stream) { whole_reader<<<instances, threads, 0, stream>>>(litmus, whole); });
        }
        for (const bool fences : {true, false}) {
            run_one("vectors with a bit, cleared", fences ? "cleared, barrier, fence, word back" : "cleared, barrier, word back without a fence", fences,
                    options_.rounds, fences, false,
                    [](const Litmus &litmus, cudaStream_t stream) { vector_writer<<<instances, threads, 0, stream>>>(litmus); },
                    [](const Litmus &litmus, cudaStream_t stream) { vector_reader<<<instances, threads, 0, stream>>>(litmus); });
        }
        for (const bool early : {false, true}) {
            run_kernels(early);
        }
        return std::move(findings_);
    }

private:
    Litmus litmus_of(const Side &side, uint32_t rounds, bool fences, bool acquires) const {
        const auto timeout_ns = static_cast<uint64_t>(options_.timeout * 1e9);
        return {reader_.data, reader_.words, writer_.words, side.counters, rounds, timeout_ns, fences, acquires};
    }

    void run_one(const char *test, const char *variant, bool forbidden, uint32_t rounds, bool fences, bool acquires, const Start &write, const Start &read) {
        writer_.clear();
        reader_.clear();
        reader_.use();
        read(litmus_of(reader_, rounds, fences, acquires), reader_.stream);
        check(cudaGetLastError(), "launching a reader");
        writer_.use();
        write(litmus_of(writer_, rounds, fences, acquires), writer_.stream);
        check(cudaGetLastError(), "launching a writer");
        finish(test, variant, forbidden);
    }

    // Many kernels, in graphs.
    void run_kernels(bool early) {
        constexpr uint32_t rounds_a_graph = 100;
        writer_.clear();
        reader_.clear();
        const auto chain = [&](const Side &side, auto first, int first_blocks, int first_threads, auto second, int second_blocks, int second_threads) {
            const Litmus litmus = litmus_of(side, 0, false, false);
            const auto launch = [&](auto kernel, int blocks, int width) {
                cudaLaunchAttribute attribute{};
                attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
                attribute.val.programmaticStreamSerializationAllowed = 1;
                cudaLaunchConfig_t config{};
                config.gridDim = dim3(static_cast<unsigned>(blocks));
                config.blockDim = dim3(static_cast<unsigned>(width));
                config.stream = side.stream;
                config.attrs = &attribute;
                config.numAttrs = early ? 1 : 0;
                check(cudaLaunchKernelEx(&config, kernel, litmus), "launching a kernel");
            };
            side.use();
            check(cudaStreamBeginCapture(side.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
            for (uint32_t round = 0; round < rounds_a_graph; ++round) {
                launch(first, first_blocks, first_threads);
                launch(second, second_blocks, second_threads);
            }
            cudaGraph_t graph = nullptr;
            cudaGraphExec_t ready = nullptr;
            check(cudaStreamEndCapture(side.stream, &graph), "cudaStreamEndCapture");
            const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
            cudaGraphDestroy(graph);
            check(status, "cudaGraphInstantiate");
            check(cudaGraphUpload(ready, side.stream), "cudaGraphUpload");
            check(cudaStreamSynchronize(side.stream), "waiting for a GPU");
            return ready;
        };
        const cudaGraphExec_t reads = chain(reader_, take_kernel, instances, threads, tell_kernel, 1, 1);
        const cudaGraphExec_t writes = chain(writer_, hear_kernel, 1, 1, send_kernel, instances, threads);
        for (uint32_t replay = 0; replay < std::max(1u, options_.rounds / rounds_a_graph); ++replay) {
            reader_.use();
            check(cudaGraphLaunch(reads, reader_.stream), "cudaGraphLaunch");
            writer_.use();
            check(cudaGraphLaunch(writes, writer_.stream), "cudaGraphLaunch");
        }
        finish("vectors with a bit, cleared", early ? "the next kernel tells, without a fence, launched early" : "the next kernel tells, without a fence",
               true);
        cudaGraphExecDestroy(reads);
        cudaGraphExecDestroy(writes);
    }

    void finish(const char *test, const char *variant, bool forbidden) {
        const Counters wrote = writer_.wait(), read = reader_.wait();
        if (wrote.late != 0 || read.late != 0) {
            throw std::runtime_error(std::string(test) + ", " + variant + ": the other side did not come within the timeout");
        }
        findings_.push_back({test, variant, forbidden, read.trials, read.seen});
    }

    const Side &writer_;
    const Side &reader_;
    const LitmusOptions &options_;
    std::vector<LitmusFinding> findings_;
};

void load_kernels() {
    cudaFuncAttributes attributes;
    for (const void *kernel :
         {reinterpret_cast<const void *>(count_writer), reinterpret_cast<const void *>(count_reader), reinterpret_cast<const void *>(whole_writer),
          reinterpret_cast<const void *>(whole_reader), reinterpret_cast<const void *>(vector_writer), reinterpret_cast<const void *>(vector_reader),
          reinterpret_cast<const void *>(take_kernel), reinterpret_cast<const void *>(tell_kernel), reinterpret_cast<const void *>(hear_kernel),
          reinterpret_cast<const void *>(send_kernel)}) {
        check(cudaFuncGetAttributes(&attributes, kernel), "loading a kernel");
    }
}

}  // namespace

std::vector<LitmusFinding> run_cuda_litmus(const LitmusOptions &options, std::vector<std::string> *devices) {
    int gpus = 0;
    check(cudaGetDeviceCount(&gpus), "looking for GPUs");
    for (const int gpu : options.gpus) {
        if (gpu < 0 || gpu >= gpus) {
            throw std::runtime_error("--gpus names GPU " + std::to_string(gpu) + "; there are " + std::to_string(gpus));
        }
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, gpu), "cudaGetDeviceProperties");
        devices->push_back(std::string(properties.name) + " #" + std::to_string(gpu));
    }
    const int writer = options.gpus[0], reader = options.gpus[1];
    if (writer != reader) {
        int reachable = 0;
        check(cudaDeviceCanAccessPeer(&reachable, writer, reader), "cudaDeviceCanAccessPeer");
        if (!reachable) {
            throw std::runtime_error("GPU " + std::to_string(writer) + " cannot map GPU " + std::to_string(reader));
        }
        enable_peer(writer, reader);
        enable_peer(reader, writer);
    }
    const Side write(writer), read(reader);
    for (const Side *side : {&write, &read}) {
        side->use();
        load_kernels();
    }
    return Programs(write, read, options).run();
}

}  // namespace perf
