// What the fake driver's files share.
#pragma once

#include "fake_driver.hpp"

#include "driver/cuda.hpp"

#include <sys/stat.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace fake {

struct Pages {
    int fd;
    ino_t inode;
    size_t size;
    int references;
};

struct Mapped {
    size_t size;
    uint64_t pages;
};

// A stream of a device; the default stream is each device's own.
using Lane = std::pair<int, CUstream>;

// Waits for the first `copies` of what its stream had before it.
struct Event {
    Lane lane;
    size_t copies;
    bool asked;
};

struct Fill {
    size_t size;
    Lane lane;
};

struct Failure {
    int rank;
    std::string function;
    int number;
    CUresult result;
};

struct State {
    std::mutex mutex;
    Machine machine;
    Outstanding count;
    uint64_t next = 1000;
    std::map<uint64_t, Pages> pages;
    std::map<CUmemGenericAllocationHandle, uint64_t> handles;
    std::map<CUdeviceptr, size_t> reservations;
    std::map<CUdeviceptr, Mapped> mappings;
    std::map<CUdeviceptr, size_t> allocations;
    std::map<CUdeviceptr, int> opened;
    std::map<void *, size_t> pinned;
    std::map<Lane, std::deque<std::function<void()>>> pending;  // copies and fills that their stream has not come to
    std::map<CUdeviceptr, Fill> fills;                          // of these, by where they begin
    std::map<CUevent, Event> events;
    std::map<int, int> contexts;
    std::map<int, std::map<std::string, int>> calls;
    std::vector<Failure> failures;
};

extern State *state;
extern thread_local int actor;
extern thread_local std::vector<CUcontext> stack;

inline CUresult enter(const std::string &function) {
    int number = ++state->calls[actor][function];
    for (const Failure &failure : state->failures) {
        if (failure.rank != actor || failure.function != function) continue;
        if (failure.number == 0 || failure.number == number) return failure.result;
    }
    return CUDA_SUCCESS;
}

inline CUresult misuse(CUresult result) {
    ++state->count.misuses;
    return result;
}

#define ENTER(function)                                                     \
    std::lock_guard lock(state->mutex);                                     \
    if (CUresult refused = enter(function); refused != CUDA_SUCCESS) return refused

inline std::string by_type(const char *function, unsigned long long type) {
    return std::string(function) + (type == CU_MEM_HANDLE_TYPE_FABRIC ? ":fabric" : ":fd");
}

inline bool is_device(int device) { return device >= 0 && device < state->machine.devices; }
inline bool has_context() { return !stack.empty(); }
inline int device_of(CUcontext context) { return static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1; }

inline Lane lane_of(CUstream stream) { return {has_context() ? device_of(stack.back()) : -1, stream}; }

// Does the first `copies` of what a stream has before it.
void advance(Lane lane, size_t copies);
// Those of the driver's functions that are about streams.
void add_streams(moelink::CudaDriver &table);

}  // namespace fake
