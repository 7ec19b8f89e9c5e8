// The C interface of weight-exchange communicators.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/comm.hpp"
#include "eplb/comm_params.hpp"

using namespace moelink;
using namespace moelink::eplb;

namespace {

// Runs a call on a communicator and keeps its error text with the object.
template <class Body>
moelink_status on_comm(const char *name, const moelink_eplb_comm *comm, Body &&body) noexcept {
    const moelink_status status = guard(name, [&] { body(*not_null(comm, "comm")->object); });
    if (status < MOELINK_OK && comm != nullptr) comm->object->note_error(last_error());
    return status;
}

}  // namespace

void moelink_eplb_comm_params_init(moelink_eplb_comm_params *params) {
    const moelink_eplb_comm_params defaults = MOELINK_EPLB_COMM_PARAMS_INIT;
    if (params != nullptr) *params = defaults;
}

void moelink_eplb_comm_info_init(moelink_eplb_comm_info *info) {
    const moelink_eplb_comm_info defaults = MOELINK_EPLB_COMM_INFO_INIT;
    if (info != nullptr) *info = defaults;
}

void moelink_eplb_comm_stats_init(moelink_eplb_comm_stats *stats) {
    const moelink_eplb_comm_stats defaults = MOELINK_EPLB_COMM_STATS_INIT;
    if (stats != nullptr) *stats = defaults;
}

moelink_status moelink_eplb_comm_query(const moelink_group *group, int32_t kind, const moelink_eplb_comm_params *params,
                                       uint64_t expert_bytes, moelink_eplb_comm_info *out, char *reasons, uint64_t reasons_bytes) {
    return guard("moelink_eplb_comm_query", [&] {
        const Group &object = *not_null(group, "group")->object;
        check_output(out, "out");
        std::string why;
        const moelink_eplb_comm_info info = query_comm(object, kind, read_comm_params(params, object), expert_bytes, &why);
        write_output(out, info, "out");
        write_text(why, reasons, reasons_bytes);
    });
}

moelink_status moelink_eplb_comm_create(moelink_group *group, int32_t kind, moelink_eplb_comm **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_eplb_comm_create", [&] {
        not_null(out, "out");
        not_null(group, "group");
        require_comm_kind(kind, group->object->device());
        *out = new moelink_eplb_comm{Ref<Comm>::adopt(new Comm(group->object, kind))};
    });
}

moelink_status moelink_eplb_comm_init(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params) {
    return on_comm("moelink_eplb_comm_init", comm, [&](Comm &object) { object.init(params); });
}

moelink_status moelink_eplb_comm_ensure(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params) {
    return on_comm("moelink_eplb_comm_ensure", comm, [&](Comm &object) { object.ensure(params); });
}

moelink_status moelink_eplb_comm_reinit(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params) {
    return on_comm("moelink_eplb_comm_reinit", comm, [&](Comm &object) { object.reinit(params); });
}

moelink_status moelink_eplb_comm_cleanup(moelink_eplb_comm *comm) {
    return on_comm("moelink_eplb_comm_cleanup", comm, [](Comm &object) { object.cleanup(); });
}

moelink_status moelink_eplb_comm_register(moelink_eplb_comm *comm, int32_t layer, const moelink_eplb_tensor *tensors, int32_t count,
                                          int32_t local_slots) {
    return on_comm("moelink_eplb_comm_register", comm, [&](Comm &object) { object.add_layer(layer, tensors, count, local_slots); });
}

moelink_status moelink_eplb_comm_set_stream(moelink_eplb_comm *comm, moelink_stream stream) {
    return on_comm("moelink_eplb_comm_set_stream", comm, [&](Comm &object) { object.set_stream(stream); });
}

moelink_status moelink_eplb_comm_set_transfer_context(moelink_eplb_comm *comm, const int32_t *old_indices, int64_t count, int32_t layer) {
    return on_comm("moelink_eplb_comm_set_transfer_context", comm, [&](Comm &object) { object.set_context(old_indices, count, layer); });
}

moelink_status moelink_eplb_comm_add_send(moelink_eplb_comm *comm, const moelink_rows *tensors, int32_t count, int32_t dst_rank,
                                          int32_t expert) {
    return on_comm("moelink_eplb_comm_add_send", comm, [&](Comm &object) { object.add_send(tensors, count, dst_rank, expert); });
}

moelink_status moelink_eplb_comm_add_recv(moelink_eplb_comm *comm, const moelink_rows *tensors, int32_t count, int32_t src_rank,
                                          int32_t expert) {
    return on_comm("moelink_eplb_comm_add_recv", comm, [&](Comm &object) { object.add_recv(tensors, count, src_rank, expert); });
}

moelink_status moelink_eplb_comm_execute(moelink_eplb_comm *comm) {
    return on_comm("moelink_eplb_comm_execute", comm, [](Comm &object) { object.execute(); });
}

int32_t moelink_eplb_comm_needs_reservation(const moelink_eplb_comm *comm) {
    return comm != nullptr && comm->object->needs_reservation() ? 1 : 0;
}

moelink_status moelink_eplb_comm_describe(const moelink_eplb_comm *comm, moelink_eplb_comm_info *out, char *reasons,
                                          uint64_t reasons_bytes) {
    return on_comm("moelink_eplb_comm_describe", comm, [&](const Comm &object) {
        check_output(out, "out");
        std::string text;
        write_output(out, object.describe(&text), "out");
        write_text(text, reasons, reasons_bytes);
    });
}

moelink_status moelink_eplb_comm_stats_of(moelink_eplb_comm *comm, moelink_eplb_comm_stats *out) {
    return on_comm("moelink_eplb_comm_stats_of", comm, [&](Comm &object) {
        const moelink_eplb_comm_stats defaults = MOELINK_EPLB_COMM_STATS_INIT;
        moelink_eplb_comm_stats stats = read_params(out, defaults, "out");
        object.stats(stats);
        write_output(out, stats, "out");
    });
}

const char *moelink_eplb_comm_error(const moelink_eplb_comm *comm) { return comm != nullptr ? keep_text(comm->object->error()) : ""; }

void moelink_eplb_comm_destroy(moelink_eplb_comm *comm) {
    if (comm == nullptr) return;
    guard("moelink_eplb_comm_destroy", [&] { comm->object->cleanup(); });
    delete comm;
}
