#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <vector>

#include "cuda_status.cuh"
#include "device.hpp"
#include "gpu.cuh"
#include "launches.cuh"
#include "strips.hpp"

namespace perf {

namespace {

__device__ float load_value(const float *row, int column) {
    return row[column];
}
__device__ float load_value(const __half *row, int column) {
    return __half2float(row[column]);
}
__device__ float load_value(const __nv_bfloat16 *row, int column) {
    return __bfloat162float(row[column]);
}
__device__ void store_value(float *row, int column, float value) {
    row[column] = value;
}
__device__ void store_value(__half *row, int column, float value) {
    row[column] = __float2half_rn(value);
}
__device__ void store_value(__nv_bfloat16 *row, int column, float value) {
    row[column] = __float2bfloat16_rn(value);
}

constexpr int most_topk = 32;

template <class T>
__global__ void experts_kernel(ExpertWork work, const ExpertMap *maps) {
    __shared__ ExpertMap map[most_topk];
    __shared__ float weight[most_topk];
    __shared__ int used;
    const int64_t rows = work.slots * work.ranks;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        if (row % work.slots >= work.counts[row / work.slots]) {
            continue;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            used = 0;
            for (int k = 0; k < work.topk; ++k) {
                const int32_t id = work.ids[row * work.topk + k];
                if (id >= 0 && id < work.experts) {
                    map[used] = maps[id];
                    weight[used++] = work.weights[row * work.topk + k];
                }
            }
        }
        __syncthreads();
        const char *in = static_cast<const char *>(work.rows) + row * work.row_stride;
        const char *scales = static_cast<const char *>(work.scales) + row * work.scale_stride;
        T *out = static_cast<T *>(work.out) + row * work.hidden;
        for (int column = threadIdx.x; column < work.hidden; column += blockDim.x) {
            const float x = work.scales == nullptr ? load_value(reinterpret_cast<const T *>(in), column)
                                                   : e4m3_to_float(in[column]) * scale_at(scales, work.e8m0, column / scale_block);
            float sum = 0;
            for (int k = 0; k < used; ++k) {
                const float bias = (map[k].signs >> (column & 63)) & 1 ? map[k].bias : -map[k].bias;
                sum += weight[k] * (map[k].scale * x + bias);
            }
            store_value(out, column, sum);
        }
    }
}

__device__ void release_word(uint64_t *word, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
__device__ uint64_t acquire_word(const uint64_t *word) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

// One block; one thread a peer. A wait that expires leaves its mark and ends.
__global__ void start_line_kernel(uint64_t *const *words, int rank, int ranks, uint64_t timeout_ns) {
    uint64_t *mine = words[rank];
    __shared__ uint64_t round;
    if (threadIdx.x == 0) {
        round = ++mine[ranks];
    }
    __syncthreads();
    for (int peer = threadIdx.x; peer < ranks; peer += blockDim.x) {
        release_word(words[peer] + rank, round);
    }
    const uint64_t start = now_ns();
    for (int peer = threadIdx.x; peer < ranks; peer += blockDim.x) {
        while (static_cast<int64_t>(acquire_word(mine + peer) - round) < 0) {
            if (now_ns() - start > timeout_ns) {
                mine[ranks + start_line_fault_word] = static_cast<uint64_t>(peer) + 1;
                return;
            }
        }
    }
}

class CudaDevice final : public Device {
public:
    CudaDevice(int ordinal, int experts) : ordinal_(ordinal) {
        check(cudaSetDevice(ordinal), "cudaSetDevice");
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        std::vector<ExpertMap> maps;
        for (int e = 0; e < experts; ++e) {
            maps.push_back(expert_map(e));
        }
        check(cudaMalloc(reinterpret_cast<void **>(&maps_), maps.size() * sizeof(ExpertMap) + 1), "cudaMalloc (expert maps)");
        copy_in(maps_, maps.data(), maps.size() * sizeof(ExpertMap));
        // A kernel that is loaded behind one that waits for a peer would wait with it.
        cudaFuncAttributes attributes;
        check(cudaFuncGetAttributes(&attributes, experts_kernel<float>), "loading a kernel");
        check(cudaFuncGetAttributes(&attributes, experts_kernel<__half>), "loading a kernel");
        check(cudaFuncGetAttributes(&attributes, experts_kernel<__nv_bfloat16>), "loading a kernel");
        check(cudaFuncGetAttributes(&attributes, start_line_kernel), "loading a kernel");
        load_bare_kernels();
    }
    ~CudaDevice() override {
        cudaSetDevice(ordinal_);
        cudaStreamSynchronize(stream_);
        CudaDevice::free_all();
        cudaFree(words_);
        cudaFree(maps_);
        for (cudaEvent_t event : marks_) {
            cudaEventDestroy(event);
        }
        cudaStreamDestroy(stream_);
    }

    void *alloc(uint64_t bytes) override {
        void *data = nullptr;
        check(cudaMalloc(&data, bytes > 0 ? bytes : 1), ("cudaMalloc of " + std::to_string(bytes) + " bytes").c_str());
        blocks_.push_back(data);
        return data;
    }
    void free_all() override {
        cudaStreamSynchronize(stream_);
        for (cudaGraphExec_t graph : graphs_) {
            cudaGraphExecDestroy(graph);
        }
        graphs_.clear();
        for (void *block : blocks_) {
            cudaFree(block);
        }
        blocks_.clear();
    }
    void copy_in(void *to, const void *from, uint64_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
        sync();
    }
    void copy_out(void *to, const void *from, uint64_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy from the device");
        sync();
    }
    void copy(void *to, const void *from, uint64_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy between devices");
    }
    void copy_by_sms(const std::vector<Copy> &copies, int sms) override {
        std::vector<moelink::kernels::StripCopy> strips;
        for (const Copy &copy : copies) {
            auto *to = static_cast<unsigned char *>(copy.to);
            strips.push_back({to, static_cast<const unsigned char *>(copy.from), 1, copy.bytes, copy.bytes, copy.bytes});
        }
        check(static_cast<cudaError_t>(moelink::kernels::cuda::copy_strips(strips.data(), strips.size(), sms, stream_)),
              "launching the library's copy kernel");
    }
    void fill(void *data, int byte, uint64_t bytes) override {
        check(cudaMemsetAsync(data, byte, bytes, stream_), "cudaMemsetAsync");
    }
    void sync() override {
        check(cudaStreamSynchronize(stream_), "waiting for the device");
        uint64_t fault = 0;
        if (fault_word_ != nullptr) {
            check(cudaMemcpyAsync(&fault, fault_word_, sizeof fault, cudaMemcpyDeviceToHost, stream_), "reading the fault word");
            check(cudaStreamSynchronize(stream_), "waiting for the device");
        }
        if (fault != 0) {
            throw std::runtime_error("rank " + std::to_string(fault - 1) + " did not come to the start line in time");
        }
    }
    moelink_stream stream() override { return stream_; }

    void reserve_marks(int count) override {
        while (marks_.size() < static_cast<size_t>(count)) {
            cudaEvent_t event;
            check(cudaEventCreate(&event), "cudaEventCreate");
            marks_.push_back(event);
        }
    }
    void mark(int index) override {
        check(cudaEventRecordWithFlags(marks_[static_cast<size_t>(index)], stream_,
                                       capturing_ ? cudaEventRecordExternal : cudaEventRecordDefault),
              "recording an event");
    }
    double between_us(int from, int to) override {
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, marks_[static_cast<size_t>(from)], marks_[static_cast<size_t>(to)]),
              "cudaEventElapsedTime");
        return milliseconds * 1e3;
    }

    bool graphs() const override { return true; }
    void begin_capture() override {
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        capturing_ = true;
    }
    int end_capture() override {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t ready = nullptr;
        capturing_ = false;
        check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "cudaGraphInstantiate");
        check(cudaGraphUpload(ready, stream_), "cudaGraphUpload");
        graphs_.push_back(ready);
        return static_cast<int>(graphs_.size()) - 1;
    }
    std::vector<Launch> inspect_capture() override {
        cudaGraph_t graph = nullptr;
        capturing_ = false;
        check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        std::vector<Launch> found = launches_of(graph);
        cudaGraphDestroy(graph);
        return found;
    }
    void bare_launch(int parameter_bytes) override { launch_bare(parameter_bytes, stream_); }
    void launch(int graph) override { check(cudaGraphLaunch(graphs_[static_cast<size_t>(graph)], stream_), "cudaGraphLaunch"); }

    void experts(const ExpertWork &work) override {
        constexpr int64_t most_blocks = 2048;
        constexpr int threads = 256;
        if (work.topk > most_topk) {
            throw std::runtime_error("top-k is " + std::to_string(work.topk) + "; at most 32 works");
        }
        const int64_t rows = work.slots * work.ranks;
        const auto blocks = static_cast<unsigned>(rows < most_blocks ? (rows > 0 ? rows : 1) : most_blocks);
        if (work.dtype.id == MOELINK_DTYPE_F32) {
            experts_kernel<float><<<blocks, threads, 0, stream_>>>(work, maps_);
        } else if (work.dtype.id == MOELINK_DTYPE_F16) {
            experts_kernel<__half><<<blocks, threads, 0, stream_>>>(work, maps_);
        } else {
            experts_kernel<__nv_bfloat16><<<blocks, threads, 0, stream_>>>(work, maps_);
        }
        check(cudaGetLastError(), "launching the experts' kernel");
    }

    void prepare_start_line(const StartLine &line) override {
        const size_t bytes = sizeof(void *) * static_cast<size_t>(line.ranks);
        check(cudaMalloc(reinterpret_cast<void **>(&words_), bytes), "cudaMalloc (start line)");
        copy_in(words_, line.words, bytes);
        fault_word_ = static_cast<uint64_t *>(line.words[line.rank]) + line.ranks + start_line_fault_word;
    }
    void wait_start_line(const StartLine &line) override {
        constexpr int threads = 128;
        start_line_kernel<<<1, threads, 0, stream_>>>(words_, line.rank, line.ranks, line.timeout_ns);
        check(cudaGetLastError(), "launching the start line's kernel");
    }
    void forget_start_line() override {
        sync();
        fault_word_ = nullptr;
    }

    std::string describe() const override {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, ordinal_), "cudaGetDeviceProperties");
        return std::string(properties.name) + " #" + std::to_string(ordinal_);
    }

private:
    int ordinal_;
    cudaStream_t stream_ = nullptr;
    ExpertMap *maps_ = nullptr;
    uint64_t **words_ = nullptr;
    uint64_t *fault_word_ = nullptr;
    bool capturing_ = false;
    std::vector<void *> blocks_;
    std::vector<cudaEvent_t> marks_;
    std::vector<cudaGraphExec_t> graphs_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(int ordinal, int experts) {
    return std::make_unique<CudaDevice>(ordinal, experts);
}

bool built_with_cuda() {
    return true;
}

}  // namespace perf
