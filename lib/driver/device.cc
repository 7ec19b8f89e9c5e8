// include/moelink/device.h
#include "driver/device.hpp"

#include "base/guard.hpp"
#include "base/params.hpp"
#include "driver/cuda.hpp"
#include "driver/nccl.hpp"
#include "driver/nixl.hpp"
#include "driver/nvml.hpp"
#include "driver/ucx.hpp"

#include <moelink/device.h>

#include <algorithm>
#include <cstdio>

namespace moelink {

namespace {

constexpr int least_capability = 90;  // Hopper

#if MOELINK_CUDA

int attribute(CUdevice device, CUdevice_attribute which) {
    int value = 0;
    check(cuda().device_attribute(&value, which, device), "cuDeviceGetAttribute");
    return value;
}

int capability(CUdevice device) {
    return attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) * 10 +
           attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

int device_count() {
    int count = 0;
    check(cuda().device_count(&count), "cuDeviceGetCount");
    return count;
}

CUdevice device_at(int32_t ordinal, const char *name) {
    int count = device_count();
    if (ordinal < 0 || ordinal >= count) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is {}; this process sees {} CUDA {}", name, ordinal, count,
             count == 1 ? "device" : "devices");
    }
    CUdevice device = 0;
    check(cuda().device(&device, ordinal), "cuDeviceGet");
    return device;
}

std::string uuid_text(const CUuuid &uuid) {
    std::string text = "GPU-";
    for (size_t i = 0; i < sizeof uuid.bytes; ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
    }
    return text;
}

moelink_device_info describe(int32_t ordinal) {
    CUdevice device = device_at(ordinal, "ordinal");
    moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
    info.ordinal = ordinal;
    check(cuda().device_name(info.name, static_cast<int>(sizeof info.name), device), "cuDeviceGetName");
    CUuuid uuid{};
    check(cuda().device_uuid(&uuid, device), "cuDeviceGetUuid");
    write_text(uuid_text(uuid), info.uuid, sizeof info.uuid);
    check(cuda().device_pci_bus_id(info.pci_bus_id, static_cast<int>(sizeof info.pci_bus_id), device), "cuDeviceGetPCIBusId");
    info.compute_capability = capability(device);
    info.multiprocessors = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    size_t bytes = 0;
    check(cuda().device_memory(&bytes, device), "cuDeviceTotalMem");
    info.memory_bytes = bytes;
    info.supported = info.compute_capability >= least_capability ? 1 : 0;
    int fabric = 0;  // drivers before 12.3 do not know the question
    cuda().device_attribute(&fabric, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, device);
    info.fabric_attribute = fabric != 0 ? 1 : 0;
    info.posix_fd_attribute = attribute(device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) != 0 ? 1 : 0;
    info.nvlinks = nvml_active_links(info.pci_bus_id);
    return info;
}

int32_t reaches(int32_t ordinal, int32_t peer) {
    CUdevice from = device_at(ordinal, "ordinal");
    CUdevice to = device_at(peer, "peer");
    if (from == to) return 1;
    int can = 0;
    check(cuda().device_can_access_peer(&can, from, to), "cuDeviceCanAccessPeer");
    return can != 0 ? 1 : 0;
}

std::string describe_driver() {
    int version = 0;
    check(cuda().driver_version(&version), "cuDriverGetVersion");
    std::string release;
    try {
        release = ", release " + nvml_driver_version();
    } catch (const Error &) {
    }
    return fmt::format("CUDA {}.{}{} ({})", version / 1000, version % 1000 / 10, release, cuda().file);
}

std::string describe_nvml() { return fmt::format("NVML of driver release {} ({})", nvml_driver_version(), nvml().file); }
std::string describe_nccl() { return fmt::format("NCCL {} ({})", nccl_version(), nccl().file); }

#else

constexpr const char *without_cuda = "this library was built without CUDA";

int device_count() { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }
moelink_device_info describe(int32_t) { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }
int32_t reaches(int32_t, int32_t) { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }
std::string describe_driver() { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }
std::string describe_nvml() { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }
std::string describe_nccl() { fail(MOELINK_ERR_NO_DRIVER, "{}", without_cuda); }

#endif

// Throws NO_DRIVER where there is none.
std::string describe_library(const std::string &name) {
    if (name == "cuda") return describe_driver();
    if (name == "nvml") return describe_nvml();
    if (name == "nccl") return describe_nccl();
    if (name == "ucx") return fmt::format("UCX {} ({})", ucx_version(), ucx_file());
    if (name == "nixl") return fmt::format("NIXL ({})", nixl().file);
    fail(MOELINK_ERR_INVALID_ARGUMENT, "\"{}\" is none of \"cuda\", \"nvml\", \"nccl\", \"ucx\" and \"nixl\"", name);
}

}  // namespace

int cuda_device_count_usable() noexcept {
#if MOELINK_CUDA
    try {
        int usable = 0;
        for (int ordinal = 0, count = device_count(); ordinal < count; ++ordinal) {
            if (capability(device_at(ordinal, "ordinal")) >= least_capability) ++usable;
        }
        return usable;
    } catch (const std::exception &) {
        return 0;
    }
#else
    return 0;
#endif
}

int cuda_current_ordinal() noexcept {
#if MOELINK_CUDA
    try {
        CUcontext context = nullptr;
        CUdevice device = 0;
        if (cuda().ctx_current(&context) != CUDA_SUCCESS || context == nullptr) return 0;
        if (cuda().ctx_device(&device) != CUDA_SUCCESS) return 0;
        return device;  // the driver's devices are numbered by their ordinals
    } catch (const std::exception &) {
        return 0;
    }
#else
    return 0;
#endif
}

}  // namespace moelink

using namespace moelink;

void moelink_device_info_init(moelink_device_info *info) {
    if (info != nullptr) *info = MOELINK_DEVICE_INFO_INIT;
}

moelink_status moelink_device_count(int32_t *out) {
    return guard("moelink_device_count", [&] {
        not_null(out, "out");
        int count = 0;
        try {
            count = device_count();
        } catch (const Error &error) {
            if (error.status() != MOELINK_ERR_NO_DRIVER) throw;
            set_last_error(fmt::format("moelink_device_count: {}", error.text()));
        }
        *out = count;
    });
}

moelink_status moelink_device_describe(int32_t ordinal, moelink_device_info *out) {
    return guard("moelink_device_describe", [&] {
        check_output(out, "out");
        write_output(out, describe(ordinal), "out");
    });
}

moelink_status moelink_device_peer(int32_t ordinal, int32_t peer, int32_t *out) {
    return guard("moelink_device_peer", [&] {
        not_null(out, "out");
        *out = reaches(ordinal, peer);
    });
}

moelink_status moelink_device_library(const char *name, char *text, uint64_t bytes) {
    return guard("moelink_device_library", [&] {
        not_null(name, "name");
        not_null(text, "text");
        moelink_status status = MOELINK_OK;
        std::string line;
        try {
            line = describe_library(name);
        } catch (const Error &error) {
            if (error.status() != MOELINK_ERR_NO_DRIVER) throw;
            status = MOELINK_ERR_NO_DRIVER;
            line = error.text();
            set_last_error(fmt::format("moelink_device_library: {}", line));
        }
        if (!write_text(line, text, bytes)) {
            fail(MOELINK_ERR_TOO_SMALL, "the line has {} bytes with its end mark, and text has room for {}", line.size() + 1,
                 bytes);
        }
        return status;
    });
}
