// One small interface for what a rank needs of its device; everything else of the program is the same on both.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <moelink/base.h>

#include "values.hpp"

namespace perf {

// The experts' work on the rows that a dispatch delivered. All pointers are device memory.
struct ExpertWork {
    const void *rows;  // [ranks * slots, hidden], the dispatched view: FP8 E4M3 where there are scales
    uint64_t row_stride;
    const void *scales;  // of FP8 rows, [ranks * slots, hidden / 128]; else nullptr, and rows have `dtype`
    uint64_t scale_stride;
    bool e8m0;
    const int32_t *ids;  // [ranks * slots, topk]
    const float *weights;
    const int32_t *counts;  // [ranks]
    void *out;              // [ranks * slots, hidden] of dtype
    int64_t slots;
    int ranks;
    int topk;
    int hidden;
    int experts;
    Dtype dtype;
};

// Bytes to be copied.
struct Copy {
    void *to;
    const void *from;
    uint64_t bytes;
};

// A kernel as it was launched.
struct Launch {
    int blocks;
    int parameter_bytes;
};

// Words in symmetric memory by which ranks start an operation at the same time. Word r of a rank's copy is written by rank r
// only; word `ranks` is the rank's own counter.
struct StartLine {
    void *const *words;  // [ranks] addresses of every rank's copy (host memory that stays valid)
    int rank;
    int ranks;
    uint64_t timeout_ns;
};
enum : uint64_t { start_line_fault_word = 1 };  // behind the counter: set when a wait was too long

class Device {
public:
    virtual ~Device() = default;
    virtual void *alloc(uint64_t bytes) = 0;  // freed with the device
    virtual void free_all() = 0;
    virtual void copy_in(void *to_device, const void *from_host, uint64_t bytes) = 0;
    virtual void copy_out(void *to_host, const void *from_device, uint64_t bytes) = 0;
    virtual void copy(void *to, const void *from, uint64_t bytes) = 0;  // in stream order; either may be another device's
    // Not on the host. In stream order, by the kernel that the library copies experts with; `to` is this device's.
    virtual void copy_by_sms(const std::vector<Copy> &copies, int sms) = 0;
    virtual void fill(void *data, int byte, uint64_t bytes) = 0;
    virtual void sync() = 0;
    virtual moelink_stream stream() = 0;

    // Points in time, in stream order; valid in a capture too.
    virtual void reserve_marks(int count) = 0;
    virtual void mark(int index) = 0;
    virtual double between_us(int from, int to) = 0;  // after sync

    virtual bool graphs() const = 0;
    virtual void begin_capture() = 0;
    virtual int end_capture() = 0;  // number of the graph
    virtual void launch(int graph) = 0;
    virtual std::vector<Launch> inspect_capture() = 0;  // ends a capture: its kernels, in place of a graph
    virtual void bare_launch(int parameter_bytes) = 0;  // an empty kernel with so many parameter bytes, rounded down to 64

    virtual void experts(const ExpertWork &work) = 0;
    virtual void prepare_start_line(const StartLine &line) = 0;
    virtual void wait_start_line(const StartLine &line) = 0;  // in stream order
    virtual void forget_start_line() = 0;                     // before its memory goes
    virtual std::string describe() const = 0;
};

std::unique_ptr<Device> make_host_device();
// Throws std::runtime_error where the program was built without CUDA.
std::unique_ptr<Device> make_cuda_device(int ordinal, int experts);
// Whether this program was built with CUDA.
bool built_with_cuda();

}  // namespace perf
