#include "fake_state.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace fake {

State *state = nullptr;
thread_local int actor = 0;
thread_local std::vector<CUcontext> stack;

namespace {

moelink::CudaDriver table;

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
    HAVE(host_alloc);
    HAVE(host_free);
    HAVE(host_device_pointer);
    HAVE(mem_address_range);
#undef HAVE
    add_streams(table);
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
