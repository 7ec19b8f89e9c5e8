#include "driver/nvml.hpp"

#include "base/log.hpp"
#include "driver/library.hpp"


namespace moelink {

namespace {

constexpr unsigned most_links = 64;  // more than any device has; NVML refuses those that do not exist

void check_nvml(const Nvml &table, int result, const char *what) {
    if (result == 0) return;
    const char *text = table.error_string(result);
    fail(MOELINK_ERR_NO_DRIVER, "{}: {} ({})", what, text != nullptr ? text : "no text", result);
}

Nvml load() {
    Library library({"libnvidia-ml.so.1"});
    Nvml table;
    table.file = library.file();
    library.find(table.init, "nvmlInit_v2");
    library.find(table.error_string, "nvmlErrorString");
    library.find(table.driver_version, "nvmlSystemGetDriverVersion");
    library.find(table.device_by_pci_bus_id, "nvmlDeviceGetHandleByPciBusId_v2");
    library.find(table.nvlink_state, "nvmlDeviceGetNvLinkState");
    check_nvml(table, table.init(), "nvmlInit");
    return table;
}

}  // namespace

const Nvml &nvml() {
    static const auto *loaded = new Loaded<Nvml>(&load);
    return loaded->get();
}

std::string nvml_driver_version() {
    const Nvml &table = nvml();
    char text[96] = {};
    check_nvml(table, table.driver_version(text, sizeof text), "nvmlSystemGetDriverVersion");
    return text;
}

int nvml_active_links(const char *pci_bus_id) noexcept {
    try {
        const Nvml &table = nvml();
        NvmlDevice *device = nullptr;
        check_nvml(table, table.device_by_pci_bus_id(pci_bus_id, &device), "nvmlDeviceGetHandleByPciBusId");
        // Only the state of a link says that it exists: its capabilities are answered for any number.
        int active = 0;
        for (unsigned link = 0; link < most_links; ++link) {
            int state = 0;
            if (table.nvlink_state(device, link, &state) == 0 && state == 1) ++active;
        }
        return active;
    } catch (const Error &error) {
        log(MOELINK_LOG_DEBUG, "NVLinks of {} are unknown: {}", pci_bus_id, error.text());
        return -1;
    }
}

}  // namespace moelink
