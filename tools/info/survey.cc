#include "survey.hpp"

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include <moelink/moelink.h>

namespace info {

namespace {

using nlohmann::json;

std::string last_error_or(moelink_status status) {
    const std::string text = moelink_last_error();
    return text.empty() ? moelink_status_string(status) : text;
}

json device(int32_t ordinal) {
    moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
    const moelink_status status = moelink_device_describe(ordinal, &info);
    if (status != MOELINK_OK) {
        return {{"ordinal", ordinal}, {"error", last_error_or(status)}};
    }
    return {{"ordinal", info.ordinal},
            {"name", info.name},
            {"uuid", info.uuid},
            {"pci_bus_id", info.pci_bus_id},
            {"compute_capability", info.compute_capability},
            {"multiprocessors", info.multiprocessors},
            {"memory_bytes", info.memory_bytes},
            {"supported", info.supported != 0},
            {"fabric_attribute", info.fabric_attribute != 0},
            {"posix_fd_attribute", info.posix_fd_attribute != 0},
            {"nvlinks", info.nvlinks}};
}

// peers[i][j]: 1 when i can map j's memory, 0 when not, null when the driver does not say.
json peer_matrix(int32_t count) {
    json rows = json::array();
    for (int32_t i = 0; i < count; ++i) {
        json row = json::array();
        for (int32_t j = 0; j < count; ++j) {
            int32_t reaches = 0;
            row.push_back(i == j ? json(1) : moelink_device_peer(i, j, &reaches) == MOELINK_OK ? json(reaches) : json(nullptr));
        }
        rows.push_back(row);
    }
    return rows;
}

json libraries() {
    json found = json::array();
    for (const char *name : {"cuda", "nvml", "nccl", "ucx", "nixl"}) {
        char text[512] = "";
        const moelink_status status = moelink_device_library(name, text, sizeof text);
        found.push_back({{"name", name},
                         {"usable", status == MOELINK_OK},
                         {"text", status == MOELINK_OK || status == MOELINK_ERR_NO_DRIVER ? text : last_error_or(status)}});
    }
    return found;
}

json managers() {
    json kinds = json::array();
    for (const int32_t kind : {MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_TWO_SIDED, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_REFERENCE}) {
        for (const int32_t device : {MOELINK_DEVICE_HOST, MOELINK_DEVICE_CUDA}) {
            char text[512] = "";
            const moelink_status status = moelink_manager_kind_describe(kind, device, text, sizeof text);
            kinds.push_back({{"kind", moelink_manager_kind_name(kind)},
                             {"device", device == MOELINK_DEVICE_HOST ? "host" : "cuda"},
                             {"usable", status == MOELINK_OK},
                             {"text", text[0] != '\0' ? std::string(text) : last_error_or(status)}});
        }
    }
    return kinds;
}

json backends() {
    json found = json::array();
    moelink_all2all_backend backend = MOELINK_ALL2ALL_BACKEND_INIT;
    for (int32_t index = 0; moelink_all2all_backend_at(index, &backend) == MOELINK_OK; ++index) {
        found.push_back({{"name", backend.name},
                         {"manager", moelink_manager_kind_name(backend.kind)},
                         {"layout", moelink_layout_name(backend.layout)},
                         {"same", backend.same != 0},
                         {"reason", backend.reason}});
    }
    return found;
}

// What one rank of the trial saw.
struct Trial {
    moelink_status status = MOELINK_OK;
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    std::string reasons;
    std::string error;
};

Trial try_providers(moelink_group *group) {
    Trial trial;
    char reasons[4096] = "";
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = 1;
    trial.status = moelink_memory_query(group, &params, &trial.info, reasons, sizeof reasons);
    trial.reasons = reasons;
    if (trial.status != MOELINK_OK) {
        trial.error = last_error_or(trial.status);
    }
    moelink_group_finalize(group);
    moelink_group_destroy(group);
    return trial;
}

// A real trial of every provider by a group of threads: on CUDA one rank a GPU, and at least two ranks.
json providers(int32_t device, int32_t gpus) {
    const bool on_cuda = device == MOELINK_DEVICE_CUDA;
    const int32_t ranks = std::max(2, on_cuda ? gpus : 2);
    json result = {{"device", on_cuda ? "cuda" : "host"}, {"ranks", ranks}, {"chosen", nullptr}, {"providers", json::array()}};
    constexpr uint64_t timeout_ns = 20'000'000'000;
    std::vector<moelink_group_params> params(static_cast<size_t>(ranks), moelink_group_params MOELINK_GROUP_PARAMS_INIT);
    for (int32_t rank = 0; rank < ranks; ++rank) {
        params[static_cast<size_t>(rank)].device = device;
        params[static_cast<size_t>(rank)].device_ordinal = on_cuda ? rank % gpus : -1;
        params[static_cast<size_t>(rank)].timeout_ns = timeout_ns;
    }
    std::vector<moelink_group *> groups(static_cast<size_t>(ranks));
    const moelink_status made = moelink_group_create_threads(ranks, params.data(), groups.data());
    if (made != MOELINK_OK) {
        result["error"] = last_error_or(made);
        return result;
    }
    std::vector<Trial> trials(groups.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
        threads.emplace_back([&, rank] { trials[rank] = try_providers(groups[rank]); });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    const Trial &trial = trials[0];
    if (trial.status == MOELINK_OK) {
        result["chosen"] = moelink_provider_name(trial.info.provider);
        result["granularity"] = trial.info.granularity;
    } else {
        result["error"] = trial.error;
    }
    for (int32_t provider = MOELINK_MEMORY_FABRIC; provider <= MOELINK_MEMORY_HOST_SHM; ++provider) {
        const bool tried = (trial.info.tried >> provider & 1) != 0;
        const int32_t status = trial.info.status[provider];
        result["providers"].push_back({{"name", moelink_provider_name(provider)},
                                       {"tried", tried},
                                       {"works", tried && status == MOELINK_OK},
                                       {"status", moelink_status_name(status)}});
    }
    result["reasons"] = trial.reasons;
    return result;
}

}  // namespace

json survey() {
    json document;
    document["version"] = moelink_version_string();
    int32_t gpus = 0;
    const moelink_status counted = moelink_device_count(&gpus);
    document["devices"] = json::array();
    if (counted != MOELINK_OK || gpus == 0) {
        document["devices_note"] = last_error_or(counted);
        gpus = 0;
    }
    bool any_supported = false;
    for (int32_t ordinal = 0; ordinal < gpus; ++ordinal) {
        document["devices"].push_back(device(ordinal));
        any_supported = any_supported || document["devices"].back().value("supported", false);
    }
    document["peers"] = peer_matrix(gpus);
    document["libraries"] = libraries();
    document["providers"] = json::array({providers(MOELINK_DEVICE_HOST, 0)});
    if (any_supported) {
        document["providers"].push_back(providers(MOELINK_DEVICE_CUDA, gpus));
    }
    document["managers"] = managers();
    document["all2all_backends"] = backends();
    return document;
}

}  // namespace info
