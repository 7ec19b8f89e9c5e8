#include "base/guard.hpp"
#include "base/params.hpp"
#include "moe/manager.hpp"

using namespace moelink;

namespace {

// Runs a call on a manager and keeps its error text with the object.
template <class Body>
moelink_status on_manager(const char *name, const moelink_manager *manager, Body &&body) noexcept {
    moelink_status status = guard(name, [&] {
        not_null(manager, "manager");
        body(*manager->object);
    });
    if (status < 0 && manager != nullptr) manager->object->note_error(last_error());
    return status;
}

}  // namespace

#define MOELINK_INIT(name, type, value)  \
    void name(type *out) {               \
        static const type initial = value; \
        if (out != nullptr) *out = initial; \
    }
MOELINK_INIT(moelink_all2all_backend_init, moelink_all2all_backend, MOELINK_ALL2ALL_BACKEND_INIT)
MOELINK_INIT(moelink_manager_config_init, moelink_manager_config, MOELINK_MANAGER_CONFIG_INIT)
MOELINK_INIT(moelink_manager_sizes_init, moelink_manager_sizes, MOELINK_MANAGER_SIZES_INIT)
MOELINK_INIT(moelink_dispatch_args_init, moelink_dispatch_args, MOELINK_DISPATCH_ARGS_INIT)
MOELINK_INIT(moelink_dispatched_init, moelink_dispatched, MOELINK_DISPATCHED_INIT)
MOELINK_INIT(moelink_prepare_args_init, moelink_prepare_args, MOELINK_PREPARE_ARGS_INIT)
MOELINK_INIT(moelink_prepared_init, moelink_prepared, MOELINK_PREPARED_INIT)
MOELINK_INIT(moelink_combine_args_init, moelink_combine_args, MOELINK_COMBINE_ARGS_INIT)

moelink_status moelink_manager_query(const moelink_group *group, int32_t kind, const moelink_manager_config *config,
                                     moelink_manager_sizes *out) {
    return guard("moelink_manager_query", [&] {
        not_null(group, "group");
        check_output(out, "out");
        const ManagerKind *row = find_kind(kind);
        if (row == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no manager kind {}", kind);
        Config checked = read_config(config, *group->object);
        std::string why;
        moelink_status status = row->available(group->object->device(), &why);
        if (status != MOELINK_OK) fail(status, "{}: {}", row->name, why);
        moelink_manager_sizes sizes = row->query(*group->object, checked);
        add_layout_sizes(sizes, checked, *group->object);
        write_output(out, sizes, "out");
    });
}

moelink_status moelink_manager_create(moelink_group *ep_group, int32_t kind, const moelink_mapping *mapping, moelink_manager **out) {
    return guard("moelink_manager_create", [&] {
        not_null(out, "out");
        *out = nullptr;
        not_null(ep_group, "ep_group");
        Group &group = *ep_group->object;
        const ManagerKind *row = find_kind(kind);
        if (row == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no manager kind {}", kind);
        if (mapping != nullptr) {
            moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
            if (moelink_status status = moelink_mapping_describe(mapping, group.size(), &info); status != MOELINK_OK) {
                fail(status, "the group is not the EP group of the mapping: {}", last_error());
            }
            moelink_mapping defaults = MOELINK_MAPPING_INIT;
            int32_t rank = read_params(mapping, defaults, "mapping").rank;
            if (rank != group.rank()) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "mapping.rank is {} and this is rank {} of the group", rank, group.rank());
            }
        }
        std::string why;
        if (moelink_status status = row->available(group.device(), &why); status != MOELINK_OK) fail(status, "{}: {}", row->name, why);
        *out = new moelink_manager{Ref<Manager>::adopt(new Manager(ep_group->object, *row))};
    });
}

moelink_status moelink_manager_init(moelink_manager *manager, const moelink_manager_config *config) {
    return on_manager("moelink_manager_init", manager, [&](Manager &object) { object.init(config); });
}

moelink_status moelink_manager_ensure(moelink_manager *manager, const moelink_manager_config *config) {
    return on_manager("moelink_manager_ensure", manager, [&](Manager &object) { object.ensure(config); });
}

moelink_status moelink_manager_reinit(moelink_manager *manager, const moelink_manager_config *config) {
    return on_manager("moelink_manager_reinit", manager, [&](Manager &object) { object.reinit(config); });
}

moelink_status moelink_manager_cleanup(moelink_manager *manager) {
    return on_manager("moelink_manager_cleanup", manager, [](Manager &object) { object.cleanup(); });
}

moelink_status moelink_manager_abandon(moelink_manager *manager, int32_t slot) {
    return on_manager("moelink_manager_abandon", manager, [&](Manager &object) { object.abandon(slot); });
}

moelink_status moelink_dispatch(moelink_manager *manager, const moelink_dispatch_args *args, moelink_stream stream, moelink_dispatched *out) {
    return on_manager("moelink_dispatch", manager, [&](Manager &object) { object.dispatch(args, stream, out); });
}

moelink_status moelink_dispatch_receive(moelink_manager *manager, int32_t slot, moelink_stream stream) {
    return on_manager("moelink_dispatch_receive", manager, [&](Manager &object) { object.receive_dispatch(slot, stream); });
}

moelink_status moelink_dispatch_counts(moelink_manager *manager, int32_t slot, uint64_t timeout_ns, int64_t *out_rank_rows,
                                       int64_t *out_expert_rows, int64_t *out_rows) {
    return on_manager("moelink_dispatch_counts", manager, [&](Manager &object) {
        not_null(out_rows, "out_rows");
        object.counts(slot, timeout_ns, out_rank_rows, out_expert_rows, out_rows);
    });
}

moelink_status moelink_combine_receive(moelink_manager *manager, int32_t slot, moelink_stream stream) {
    return on_manager("moelink_combine_receive", manager, [&](Manager &object) { object.receive_combine(slot, stream); });
}

moelink_status moelink_combine(moelink_manager *manager, const moelink_combine_args *args, moelink_stream stream) {
    return on_manager("moelink_combine", manager, [&](Manager &object) { object.combine(args, stream, true); });
}

moelink_status moelink_prepare(moelink_manager *manager, const moelink_prepare_args *args, moelink_stream stream, moelink_prepared *out) {
    return on_manager("moelink_prepare", manager, [&](Manager &object) { object.prepare(args, stream, out); });
}

moelink_status moelink_alltoallv(moelink_manager *manager, int32_t slot, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs,
                                 moelink_stream stream) {
    return on_manager("moelink_alltoallv", manager, [&](Manager &object) { object.alltoallv(slot, tensors, count, outputs, stream); });
}

moelink_status moelink_alltoallv_combine(moelink_manager *manager, const moelink_combine_args *args, moelink_stream stream) {
    return on_manager("moelink_alltoallv_combine", manager, [&](Manager &object) { object.combine(args, stream, false); });
}

moelink_status moelink_manager_state_of(const moelink_manager *manager, int32_t *out_state, uint64_t *out_generation) {
    return on_manager("moelink_manager_state_of", manager, [&](const Manager &object) {
        if (out_state != nullptr) *out_state = object.state();
        if (out_generation != nullptr) *out_generation = object.generation();
    });
}

moelink_status moelink_manager_sizes_of(const moelink_manager *manager, moelink_manager_sizes *out) {
    return on_manager("moelink_manager_sizes_of", manager, [&](const Manager &object) { write_output(out, object.sizes(), "out"); });
}

moelink_status moelink_manager_fault(moelink_manager *manager) {
    moelink_status fault = MOELINK_OK;
    moelink_status status = guard("moelink_manager_fault", [&] { fault = not_null(manager, "manager")->object->fault(); });
    return status != MOELINK_OK ? status : fault;
}

const char *moelink_manager_error(const moelink_manager *manager) {
    return manager != nullptr ? keep_text(manager->object->error()) : "";
}

void moelink_manager_destroy(moelink_manager *manager) {
    if (manager == nullptr) return;
    guard("moelink_manager_destroy", [&] { manager->object->cleanup(); });
    delete manager;
}
