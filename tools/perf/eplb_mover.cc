#include "eplb_mover.hpp"

#include <chrono>

#include <fmt/format.h>

namespace perf {

Mover::Mover(const Session &session, const EplbOptions &options, const Weights &weights)
    : session_(session), options_(options), weights_(weights) {
    int32_t kind = 0;
    must(moelink_eplb_comm_kind_of(options.back_end.c_str(), &kind), "moelink_eplb_comm_kind_of");
    moelink_eplb_comm *comm = nullptr;
    must(moelink_eplb_comm_create(session.group(), kind, &comm), "moelink_eplb_comm_create");
    comm_.reset(comm);
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.staging_experts = options.staging;
    params.flags = options.checksum ? uint32_t{MOELINK_EPLB_COMM_F_CHECKSUM} : 0u;
    params.timeout_ns = static_cast<uint64_t>(options.timeout * 1e9);
    must(moelink_eplb_comm_init(comm, &params), "moelink_eplb_comm_init");
    must(moelink_eplb_comm_set_stream(comm, weights.device().stream()), "moelink_eplb_comm_set_stream");
    for (int layer = 0; layer < options.layers; ++layer) {
        const auto tensors = weights.tensors(layer);
        must(moelink_eplb_comm_register(comm, layer, tensors.data(), static_cast<int32_t>(tensors.size()), weights.local_slots()),
             "moelink_eplb_comm_register");
    }
}

moelink_eplb_comm_info Mover::info(std::string *reasons) const {
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    char text[2048] = "";
    must(moelink_eplb_comm_describe(comm_.get(), &info, text, sizeof text), "moelink_eplb_comm_describe");
    if (reasons != nullptr) {
        *reasons = text;
    }
    return info;
}

std::string Mover::describe() const {
    std::string reasons;
    const moelink_eplb_comm_info found = info(&reasons);
    return fmt::format("experts moved by {}: {}", moelink_eplb_comm_kind_name(found.kind), reasons);
}

double Mover::move(const Map &from, const Map &to) {
    (void)from, (void)to;
    return 0;
}

}  // namespace perf
