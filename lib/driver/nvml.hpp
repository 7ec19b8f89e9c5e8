// NVML, looked up at run time. Devices are found by PCI id: its numbers are not CUDA's.
#pragma once

#include "base/error.hpp"

#include <string>

namespace moelink {

struct NvmlDevice;  // opaque to us and to NVML's callers

// NVML's interface as far as it is used here: results are int, 0 is success.
struct Nvml {
    int (*init)() = nullptr;
    const char *(*error_string)(int) = nullptr;
    int (*driver_version)(char *, unsigned) = nullptr;
    int (*device_by_pci_bus_id)(const char *, NvmlDevice **) = nullptr;
    int (*nvlink_state)(NvmlDevice *, unsigned, int *) = nullptr;
    std::string file;
};

// Throws Error NO_DRIVER with the loader's or NVML's text. Any thread.
const Nvml &nvml();

// "580.95.05"
std::string nvml_driver_version();

// NVLinks that are up on the device with CUDA's PCI id ("0000:1b:00.0"); -1 where NVML cannot tell.
int nvml_active_links(const char *pci_bus_id) noexcept;

}  // namespace moelink
