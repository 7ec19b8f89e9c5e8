#include "eplb_mover.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

namespace perf {

namespace {

uint32_t overlap_of(const std::string &name) {
    if (name == "never") return MOELINK_EPLB_OVERLAP_NEVER;
    return name == "always" ? MOELINK_EPLB_OVERLAP_ALWAYS : MOELINK_EPLB_OVERLAP_AUTO;
}

}  // namespace

Mover::Mover(const Session &session, const EplbOptions &options, const Weights &weights)
    : session_(session), options_(options) {
    int32_t kind = 0;
    must(moelink_eplb_comm_kind_of(options.back_end.c_str(), &kind), "moelink_eplb_comm_kind_of");
    moelink_eplb_comm *comm = nullptr;
    must(moelink_eplb_comm_create(session.group(), kind, &comm), "moelink_eplb_comm_create");
    comm_.reset(comm);
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.staging_experts = options.staging;
    params.sm_budget = options.sms;
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
    return fmt::format("experts were moved by {} ({})", moelink_eplb_comm_kind_name(found.kind), reasons.substr(0, reasons.find('\n')));
}

double Mover::move(const Map &from, const Map &to) {
    const moelink_eplb_shape shape = shape_of(options_);
    moelink_eplb_rearrange_params params = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    params.old_map = from.data();
    params.new_map = to.data();
    params.old_count = static_cast<int64_t>(from.size());
    params.new_count = static_cast<int64_t>(to.size());
    params.overlap = overlap_of(options_.overlap);
    moelink_eplb_rearrange_result result = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    session_.barrier();
    const auto start = std::chrono::steady_clock::now();
    must(moelink_eplb_rearrange(comm_.get(), &shape, &params, &result), "moelink_eplb_rearrange");
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    staged_ = std::max(staged_, result.staging);
    batches_ = result.batches;
    overlapped_ = result.overlapped;
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    must(moelink_eplb_comm_stats_of(comm_.get(), &stats), "moelink_eplb_comm_stats_of");
    sms_ = stats.sm_reads > sm_reads_ ? info().read_sms : 0;
    sm_reads_ = stats.sm_reads;
    return ms;
}

}  // namespace perf
