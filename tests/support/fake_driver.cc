#include "fake_driver.hpp"

#include "driver/cuda.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <type_traits>
#include <vector>

namespace fake {

namespace {

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

State *state = nullptr;
moelink::CudaDriver table;
thread_local int actor = 0;
thread_local std::vector<CUcontext> stack;

CUresult enter(const std::string &function) {
    int number = ++state->calls[actor][function];
    for (const Failure &failure : state->failures) {
        if (failure.rank != actor || failure.function != function) continue;
        if (failure.number == 0 || failure.number == number) return failure.result;
    }
    return CUDA_SUCCESS;
}

CUresult misuse(CUresult result) {
    ++state->count.misuses;
    return result;
}

#define ENTER(function)                                                     \
    std::lock_guard lock(state->mutex);                                     \
    if (CUresult refused = enter(function); refused != CUDA_SUCCESS) return refused

std::string by_type(const char *function, unsigned long long type) {
    return std::string(function) + (type == CU_MEM_HANDLE_TYPE_FABRIC ? ":fabric" : ":fd");
}

bool is_device(int device) { return device >= 0 && device < state->machine.devices; }
bool has_context() { return !stack.empty(); }
int device_of(CUcontext context) { return static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1; }

Lane lane_of(CUstream stream) { return {has_context() ? device_of(stack.back()) : -1, stream}; }

void advance(Lane lane, size_t copies) {
    std::deque<std::function<void()>> &pending = state->pending[lane];
    for (size_t i = 0; i < copies && !pending.empty(); ++i) {
        pending.front()();
        pending.pop_front();
        for (auto &[event, waiting] : state->events) {
            if (waiting.lane == lane && waiting.copies > 0) --waiting.copies;
        }
    }
}
// ---- devices and contexts

CUresult init(unsigned) { return CUDA_SUCCESS; }
CUresult driver_version(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
CUresult error_name(CUresult result, const char **name) {
    static const std::map<int, const char *> names = {{CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                      {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},
                                                      {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
                                                      {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                                                      {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}};
    auto found = names.find(result);
    *name = found != names.end() ? found->second : "CUDA_ERROR_UNKNOWN";
    return CUDA_SUCCESS;
}
CUresult error_string(CUresult, const char **text) {
    *text = "as the test wants it";
    return CUDA_SUCCESS;
}
CUresult device_count(int *count) {
    ENTER("device_count");
    *count = state->machine.devices;
    return CUDA_SUCCESS;
}
CUresult device(CUdevice *device, int ordinal) {
    ENTER("device");
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
CUresult device_name(char *name, int bytes, CUdevice) {
    ENTER("device_name");
    std::strncpy(name, "Fake", static_cast<size_t>(bytes));
    return CUDA_SUCCESS;
}
CUresult device_uuid(CUuuid *uuid, CUdevice device) {
    ENTER("device_uuid");
    for (int i = 0; i < 16; ++i) uuid->bytes[i] = static_cast<char>(16 * device + i);
    return CUDA_SUCCESS;
}
CUresult device_attribute(int *value, CUdevice_attribute which, CUdevice device) {
    ENTER("device_attribute");
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = state->machine.capability / 10;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = state->machine.capability % 10;
        break;
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED:
        *value = state->machine.fabric_attribute;
        break;
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
        *value = state->machine.posix_fd_attribute;
        break;
    default:
        *value = 1;
    }
    return CUDA_SUCCESS;
}
CUresult device_memory(size_t *bytes, CUdevice) {
    ENTER("device_memory");
    *bytes = size_t{80} << 30;
    return CUDA_SUCCESS;
}
CUresult device_pci_bus_id(char *id, int bytes, CUdevice device) {
    ENTER("device_pci_bus_id");
    std::strncpy(id, ("0000:0" + std::to_string(device) + ":00.0").c_str(), static_cast<size_t>(bytes));
    return CUDA_SUCCESS;
}
CUresult device_can_access_peer(int *can, CUdevice, CUdevice) {
    ENTER("device_can_access_peer");
    *can = state->machine.peers;
    return CUDA_SUCCESS;
}
CUresult primary_retain(CUcontext *context, CUdevice device) {
    ENTER("primary_retain");
    ++state->contexts[device];
    ++state->count.contexts;
    *context = reinterpret_cast<CUcontext>(static_cast<intptr_t>(device) + 1);
    return CUDA_SUCCESS;
}
CUresult primary_release(CUdevice device) {
    ENTER("primary_release");
    if (state->contexts[device] == 0) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    --state->contexts[device];
    --state->count.contexts;
    return CUDA_SUCCESS;
}
CUresult ctx_push(CUcontext context) {
    ENTER("ctx_push");
    if (state->contexts[device_of(context)] == 0) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    stack.push_back(context);
    ++state->count.pushed;
    return CUDA_SUCCESS;
}
CUresult ctx_pop(CUcontext *context) {
    ENTER("ctx_pop");
    if (stack.empty()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *context = stack.back();
    stack.pop_back();
    --state->count.pushed;
    return CUDA_SUCCESS;
}
CUresult ctx_current(CUcontext *context) {
    ENTER("ctx_current");
    *context = has_context() ? stack.back() : nullptr;
    return CUDA_SUCCESS;
}
CUresult ctx_device(CUdevice *device) {
    ENTER("ctx_device");
    if (!has_context()) return CUDA_ERROR_INVALID_CONTEXT;
    *device = device_of(stack.back());
    return CUDA_SUCCESS;
}
CUresult ctx_enable_peer(CUcontext context, unsigned) {
    ENTER("ctx_enable_peer");
    if (!has_context() || context == stack.back()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

// ---- virtual memory

CUresult mem_granularity(size_t *bytes, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
    ENTER("mem_granularity");
    *bytes = granule;
    return CUDA_SUCCESS;
}

CUmemGenericAllocationHandle new_handle(uint64_t id) {
    CUmemGenericAllocationHandle handle = ++state->next;
    state->handles[handle] = id;
    ++state->pages[id].references;
    ++state->count.handles;
    return handle;
}

void drop(uint64_t id) {
    Pages &pages = state->pages.at(id);
    if (--pages.references > 0) return;
    close(pages.fd);
    state->pages.erase(id);
    --state->count.pages;
}

CUresult mem_create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long) {
    ENTER(by_type("mem_create", prop->requestedHandleTypes));
    if (size == 0 || size % granule != 0 || !is_device(prop->location.id)) return misuse(CUDA_ERROR_INVALID_VALUE);
    if (size > size_t{64} << 30) return CUDA_ERROR_OUT_OF_MEMORY;
    int fd = memfd_create("fake", MFD_CLOEXEC);
    struct stat info{};
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0 || fstat(fd, &info) != 0) return CUDA_ERROR_OPERATING_SYSTEM;
    uint64_t id = ++state->next;
    state->pages[id] = Pages{fd, info.st_ino, size, 0};
    ++state->count.pages;
    *handle = new_handle(id);
    // Fresh device memory holds whatever was there before.
    void *raw = mmap(nullptr, granule, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_OPERATING_SYSTEM;
    std::memset(raw, 0xee, granule);
    munmap(raw, granule);
    return CUDA_SUCCESS;
}
CUresult mem_release(CUmemGenericAllocationHandle handle) {
    ENTER("mem_release");
    auto found = state->handles.find(handle);
    if (found == state->handles.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    uint64_t id = found->second;
    state->handles.erase(found);
    --state->count.handles;
    drop(id);
    return CUDA_SUCCESS;
}
CUresult mem_reserve(CUdeviceptr *out, size_t size, size_t alignment, CUdeviceptr, unsigned long long) {
    ENTER("mem_reserve");
    if (size % granule != 0) return misuse(CUDA_ERROR_INVALID_VALUE);
    size_t unit = alignment > granule ? alignment : granule;
    void *raw = mmap(nullptr, size + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    auto first = reinterpret_cast<uintptr_t>(raw);
    uintptr_t base = (first + unit - 1) / unit * unit;
    if (base > first) munmap(raw, base - first);
    munmap(reinterpret_cast<void *>(base + size), first + unit - base);
    state->reservations[base] = size;
    ++state->count.reservations;
    *out = base;
    return CUDA_SUCCESS;
}
CUresult mem_unreserve(CUdeviceptr base, size_t size) {
    ENTER("mem_unreserve");
    auto found = state->reservations.find(base);
    if (found == state->reservations.end() || found->second != size) return misuse(CUDA_ERROR_INVALID_VALUE);
    auto mapped = state->mappings.lower_bound(base);
    if (mapped != state->mappings.end() && mapped->first < base + size) return misuse(CUDA_ERROR_INVALID_VALUE);
    munmap(reinterpret_cast<void *>(base), size);
    state->reservations.erase(found);
    --state->count.reservations;
    return CUDA_SUCCESS;
}
CUresult mem_map(CUdeviceptr at, size_t size, size_t, CUmemGenericAllocationHandle handle, unsigned long long) {
    ENTER("mem_map");
    auto found = state->handles.find(handle);
    if (found == state->handles.end() || state->mappings.count(at) != 0) return misuse(CUDA_ERROR_INVALID_VALUE);
    Pages &pages = state->pages.at(found->second);
    auto reserved = state->reservations.upper_bound(at);
    if (reserved == state->reservations.begin() || pages.size != size) return misuse(CUDA_ERROR_INVALID_VALUE);
    --reserved;
    if (at + size > reserved->first + reserved->second) return misuse(CUDA_ERROR_INVALID_VALUE);
    void *raw = mmap(reinterpret_cast<void *>(at), size, PROT_NONE, MAP_SHARED | MAP_FIXED, pages.fd, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
    ++pages.references;
    state->mappings[at] = Mapped{size, found->second};
    ++state->count.mappings;
    return CUDA_SUCCESS;
}
CUresult mem_unmap(CUdeviceptr at, size_t size) {
    ENTER("mem_unmap");
    auto found = state->mappings.find(at);
    if (found == state->mappings.end() || found->second.size != size) return misuse(CUDA_ERROR_INVALID_VALUE);
    void *raw = mmap(reinterpret_cast<void *>(at), size, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_UNMAP_FAILED;
    uint64_t id = found->second.pages;
    state->mappings.erase(found);
    --state->count.mappings;
    drop(id);
    return CUDA_SUCCESS;
}
CUresult mem_set_access(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count) {
    ENTER("mem_set_access");
    if (state->mappings.count(at) == 0 || count != 1 || !is_device(access->location.id)) return misuse(CUDA_ERROR_INVALID_VALUE);
    return mprotect(reinterpret_cast<void *>(at), size, PROT_READ | PROT_WRITE) == 0 ? CUDA_SUCCESS : CUDA_ERROR_MAP_FAILED;
}
CUresult mem_export(void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type, unsigned long long) {
    ENTER(by_type("mem_export", type));
    auto found = state->handles.find(handle);
    if (found == state->handles.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        std::memset(out, 0, sizeof(CUmemFabricHandle));
        std::memcpy(out, &found->second, sizeof found->second);
    } else {
        int fd = dup(state->pages.at(found->second).fd);
        if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
        std::memcpy(out, &fd, sizeof fd);
    }
    return CUDA_SUCCESS;
}
CUresult mem_import(CUmemGenericAllocationHandle *handle, void *from, CUmemAllocationHandleType type) {
    ENTER(by_type("mem_import", type));
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        uint64_t id = 0;
        std::memcpy(&id, from, sizeof id);
        if (state->pages.count(id) == 0) return misuse(CUDA_ERROR_INVALID_VALUE);
        *handle = new_handle(id);
        return CUDA_SUCCESS;
    }
    struct stat info{};
    if (fstat(static_cast<int>(reinterpret_cast<intptr_t>(from)), &info) != 0) return misuse(CUDA_ERROR_INVALID_VALUE);
    for (auto &[id, pages] : state->pages) {
        if (pages.inode != info.st_ino) continue;
        *handle = new_handle(id);
        return CUDA_SUCCESS;
    }
    return misuse(CUDA_ERROR_INVALID_VALUE);
}

// ---- plain memory and IPC

CUresult mem_alloc(CUdeviceptr *out, size_t size) {
    ENTER("mem_alloc");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    if (size > size_t{64} << 30) return CUDA_ERROR_OUT_OF_MEMORY;
    void *raw = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memset(raw, 0xee, size < granule ? size : granule);  // as fresh device memory
    *out = reinterpret_cast<CUdeviceptr>(raw);
    state->allocations[*out] = size;
    ++state->count.allocations;
    return CUDA_SUCCESS;
}
CUresult mem_free(CUdeviceptr at) {
    ENTER("mem_free");
    auto found = state->allocations.find(at);
    if (found == state->allocations.end()) return misuse(CUDA_ERROR_INVALID_VALUE);
    if (state->opened.count(at) != 0) ++state->count.early;
    for (auto &[lane, pending] : state->pending) advance(lane, pending.size());
    munmap(reinterpret_cast<void *>(at), found->second);
    state->allocations.erase(found);
    --state->count.allocations;
    return CUDA_SUCCESS;
}
CUresult ipc_handle(CUipcMemHandle *handle, CUdeviceptr at) {
    ENTER("ipc_handle");
    if (state->allocations.count(at) == 0) return misuse(CUDA_ERROR_INVALID_VALUE);
    std::memset(handle, 0, sizeof *handle);
    std::memcpy(handle, &at, sizeof at);
    return CUDA_SUCCESS;
}
CUresult ipc_open(CUdeviceptr *out, CUipcMemHandle handle, unsigned flags) {
    ENTER("ipc_open");
    CUdeviceptr at = 0;
    std::memcpy(&at, &handle, sizeof at);
    if (state->allocations.count(at) == 0 || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return misuse(CUDA_ERROR_INVALID_VALUE);
    ++state->opened[at];
    ++state->count.opened;
    *out = at;
    return CUDA_SUCCESS;
}
CUresult ipc_close(CUdeviceptr at) {
    ENTER("ipc_close");
    auto found = state->opened.find(at);
    if (found == state->opened.end()) return misuse(CUDA_ERROR_INVALID_VALUE);
    if (--found->second == 0) state->opened.erase(found);
    --state->count.opened;
    return CUDA_SUCCESS;
}

// ---- pinned memory

CUresult host_alloc(void **out, size_t size, unsigned) {
    ENTER("host_alloc");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *out = std::malloc(size);
    if (*out == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    state->pinned[*out] = size;
    ++state->count.pinned;
    return CUDA_SUCCESS;
}
CUresult host_free(void *at) {
    ENTER("host_free");
    if (state->pinned.erase(at) == 0) return misuse(CUDA_ERROR_INVALID_VALUE);
    std::free(at);
    --state->count.pinned;
    return CUDA_SUCCESS;
}
CUresult host_device_pointer(CUdeviceptr *out, void *at, unsigned) {
    ENTER("host_device_pointer");
    *out = reinterpret_cast<CUdeviceptr>(at);
    return CUDA_SUCCESS;
}
CUresult mem_address_range(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
    ENTER("mem_address_range");
    auto found = state->allocations.upper_bound(at);
    if (found == state->allocations.begin()) return CUDA_ERROR_NOT_FOUND;
    --found;
    if (at - found->first >= found->second) return CUDA_ERROR_NOT_FOUND;
    *base = found->first;
    *size = found->second;
    return CUDA_SUCCESS;
}

// ---- streams; copies and fills are done when their stream is waited for, or an event behind them is asked for twice

// A fill on another stream may come before what uses the memory, or after it.
bool races(CUdeviceptr at, size_t size, CUstream stream) {
    return std::any_of(state->fills.begin(), state->fills.end(), [&](const auto &entry) {
        const auto &[begin, fill] = entry;
        return begin < at + size && at < begin + fill.size && fill.lane != lane_of(stream);
    });
}
CUresult fill_async(CUdeviceptr at, unsigned char value, size_t size, CUstream stream) {
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    state->fills[at] = Fill{size, lane_of(stream)};
    state->pending[lane_of(stream)].push_back([=] {
        std::memset(reinterpret_cast<void *>(at), value, size);
        state->fills.erase(at);
    });
    return CUDA_SUCCESS;
}
CUresult copy_async(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER("copy_async");
    if (races(to, size, stream) || races(from, size, stream)) misuse(CUDA_SUCCESS);
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    state->pending[lane_of(stream)].push_back([=] { std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), size); });
    return CUDA_SUCCESS;
}
CUresult copy_2d_async(const CUDA_MEMCPY2D *given, CUstream stream) {
    ENTER("copy_2d_async");
    const CUDA_MEMCPY2D copy = *given;
    const bool unified = copy.srcMemoryType == CU_MEMORYTYPE_UNIFIED && copy.dstMemoryType == CU_MEMORYTYPE_UNIFIED;
    if (!has_context() || !unified || copy.srcPitch < copy.WidthInBytes || copy.dstPitch < copy.WidthInBytes) {
        return misuse(CUDA_ERROR_INVALID_VALUE);
    }
    state->pending[lane_of(stream)].push_back([=] {
        for (size_t row = 0; row < copy.Height; ++row) {
            std::memcpy(reinterpret_cast<void *>(copy.dstDevice + row * copy.dstPitch),
                        reinterpret_cast<const void *>(copy.srcDevice + row * copy.srcPitch), copy.WidthInBytes);
        }
    });
    return CUDA_SUCCESS;
}
CUresult event_create(CUevent *event, unsigned) {
    ENTER("event_create");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *event = reinterpret_cast<CUevent>(++state->next);
    state->events[*event] = Event{{}, 0, true};
    ++state->count.events;
    return CUDA_SUCCESS;
}
CUresult event_destroy(CUevent event) {
    ENTER("event_destroy");
    if (state->events.erase(event) == 0) return misuse(CUDA_ERROR_INVALID_HANDLE);
    --state->count.events;
    return CUDA_SUCCESS;
}
CUresult event_record(CUevent event, CUstream stream) {
    ENTER("event_record");
    if (state->events.count(event) == 0) return misuse(CUDA_ERROR_INVALID_HANDLE);
    state->events[event] = Event{lane_of(stream), state->pending[lane_of(stream)].size(), false};
    return CUDA_SUCCESS;
}
CUresult event_query(CUevent event) {
    ENTER("event_query");
    auto found = state->events.find(event);
    if (found == state->events.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    if (!std::exchange(found->second.asked, true)) return CUDA_ERROR_NOT_READY;
    advance(found->second.lane, found->second.copies);
    return CUDA_SUCCESS;
}
CUresult stream_wait_event(CUstream stream, CUevent event, unsigned) {
    ENTER("stream_wait_event");
    auto found = state->events.find(event);
    if (found == state->events.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    auto point = reinterpret_cast<CUevent>(++state->next);  // the caller may destroy its own before the stream has come here
    state->events[point] = found->second;
    state->pending[lane_of(stream)].push_back([point] {
        const Event awaited = state->events.at(point);
        state->events.erase(point);
        advance(awaited.lane, awaited.copies);
    });
    return CUDA_SUCCESS;
}
CUresult copy_to_device(CUdeviceptr to, const void *from, size_t size) {
    ENTER("copy_to_device");
    std::memcpy(reinterpret_cast<void *>(to), from, size);
    return CUDA_SUCCESS;
}
CUresult memset_d8(CUdeviceptr at, unsigned char value, size_t size) {
    ENTER("memset_d8");
    return fill_async(at, value, size, nullptr);
}

CUresult stream_create(CUstream *stream, unsigned) {
    ENTER("stream_create");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *stream = reinterpret_cast<CUstream>(++state->next);
    ++state->count.streams;
    return CUDA_SUCCESS;
}
CUresult stream_destroy(CUstream stream) {
    ENTER("stream_destroy");
    advance(lane_of(stream), state->pending[lane_of(stream)].size());
    --state->count.streams;
    return CUDA_SUCCESS;
}
CUresult stream_synchronize(CUstream stream) {
    ENTER("stream_synchronize");
    advance(lane_of(stream), state->pending[lane_of(stream)].size());
    return CUDA_SUCCESS;
}
CUresult memset_d8_async(CUdeviceptr at, unsigned char value, size_t size, CUstream stream) {
    ENTER("memset_d8_async");
    return fill_async(at, value, size, stream);
}
CUresult copy_to_host_async(void *to, CUdeviceptr from, size_t size, CUstream) {
    ENTER("copy_to_host_async");
    std::memcpy(to, reinterpret_cast<const void *>(from), size);
    return CUDA_SUCCESS;
}

// What the library does not call in these tests.
template <class F>
struct Missing;
template <class... A>
struct Missing<CUresult (*)(A...)> {
    static CUresult call(A...) { return CUDA_ERROR_NOT_SUPPORTED; }
};

void fill_table() {
    table = {};
#define MISSING(member, function) table.member = &Missing<std::remove_const_t<decltype(table.member)>>::call;
    MOELINK_CUDA_FUNCTIONS(MISSING)
#undef MISSING
#define HAVE(member) table.member = member
    HAVE(init);
    HAVE(driver_version);
    HAVE(error_name);
    HAVE(error_string);
    HAVE(device_count);
    HAVE(device);
    HAVE(device_name);
    HAVE(device_uuid);
    HAVE(device_attribute);
    HAVE(device_memory);
    HAVE(device_pci_bus_id);
    HAVE(device_can_access_peer);
    HAVE(primary_retain);
    HAVE(primary_release);
    HAVE(ctx_push);
    HAVE(ctx_pop);
    HAVE(ctx_current);
    HAVE(ctx_device);
    HAVE(ctx_enable_peer);
    HAVE(mem_granularity);
    HAVE(mem_create);
    HAVE(mem_release);
    HAVE(mem_reserve);
    HAVE(mem_unreserve);
    HAVE(mem_map);
    HAVE(mem_unmap);
    HAVE(mem_set_access);
    HAVE(mem_export);
    HAVE(mem_import);
    HAVE(mem_alloc);
    HAVE(mem_free);
    HAVE(ipc_handle);
    HAVE(ipc_open);
    HAVE(ipc_close);
    HAVE(stream_create);
    HAVE(stream_destroy);
    HAVE(stream_synchronize);
    HAVE(memset_d8_async);
    HAVE(copy_to_host_async);
    HAVE(host_alloc);
    HAVE(host_free);
    HAVE(host_device_pointer);
    HAVE(mem_address_range);
    HAVE(copy_async);
    HAVE(copy_2d_async);
    HAVE(event_create);
    HAVE(event_destroy);
    HAVE(event_record);
    HAVE(event_query);
    HAVE(stream_wait_event);
    HAVE(copy_to_device);
    HAVE(memset_d8);
#undef HAVE
    table.file = "a fake";
}

}  // namespace

void install(const Machine &machine) {
    uninstall();
    state = new State;
    state->machine = machine;
    fill_table();
    moelink::set_cuda_driver(&table);
}

void uninstall() {
    moelink::set_cuda_driver(nullptr);
    if (state == nullptr) return;
    for (auto &[at, mapped] : state->mappings) munmap(reinterpret_cast<void *>(at), mapped.size);
    for (auto &[at, size] : state->reservations) munmap(reinterpret_cast<void *>(at), size);
    for (auto &[at, size] : state->allocations) munmap(reinterpret_cast<void *>(at), size);
    for (auto &[id, pages] : state->pages) close(pages.fd);
    for (auto &[at, size] : state->pinned) std::free(at);
    delete state;
    state = nullptr;
}

void act_as(int rank) { actor = rank; }

void fail_call(int rank, const std::string &function, int number, CUresult result) {
    std::lock_guard lock(state->mutex);
    state->failures.push_back(Failure{rank, function, number, result});
}

std::map<std::string, int> calls(int rank) {
    std::lock_guard lock(state->mutex);
    return state->calls[rank];
}

Outstanding outstanding() {
    std::lock_guard lock(state->mutex);
    return state->count;
}

std::string text(const Outstanding &o) {
    return fmt::format("{} contexts, {} handles, {} pages, {} reservations, {} mappings, {} allocations, {} opened, {} streams, "
                       "{} pinned, {} events, {} pushed, {} misuses, {} early",
                       o.contexts, o.handles, o.pages, o.reservations, o.mappings, o.allocations, o.opened, o.streams, o.pinned,
                       o.events, o.pushed, o.misuses, o.early);
}

}  // namespace fake
