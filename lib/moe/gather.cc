// The gathering manager: all ranks receive all tokens, outputs come back by reduce-scatter. It is the one-sided manager with every
// rank as a destination, or where ranks have no symmetric memory, and where the caller says so, NCCL.
#include "base/log.hpp"
#include "moe/gather_nccl.hpp"
#include "moe/nccl_comm.hpp"
#include "moe/one_sided.hpp"

namespace moelink {

namespace {

bool wants_nccl(const Group &group, const Config &config) {
    if ((config.flags & MOELINK_MANAGER_F_NCCL) == 0) return false;
    if (!group.on_cuda()) fail(MOELINK_ERR_UNSUPPORTED, "MOELINK_MANAGER_F_NCCL is set, and NCCL moves no rows of a host group");
    return true;
}

void require_nccl() {
    std::string why;
    if (moelink_status status = nccl_available(&why); status != MOELINK_OK) fail(status, "MOELINK_MANAGER_F_NCCL is set, but {}", why);
}

moelink_manager_sizes gather_query(const Group &group, const Config &config) {
    if (wants_nccl(group, config)) {
        require_nccl();
        return gather_nccl_sizes(group, config);
    }
    check_workspace(group, config);
    return sizes_from(make_layout(config, group.size(), group.on_cuda(), true), config);
}

// What every rank finds alike: Memory is made by all of them or by none.
std::unique_ptr<Backend> gather_make(const BackendParams &params) {
    if (wants_nccl(*params.group, params.config)) return make_gather_nccl(params);
    try {
        check_workspace(*params.group, params.config);
        return std::make_unique<OneSided>(params, true);
    } catch (const Error &error) {
        const bool may_change = params.group->on_cuda() && params.config.provider == MOELINK_MEMORY_AUTO;
        if (error.status() != MOELINK_ERR_UNSUPPORTED || !may_change) throw;
        log(MOELINK_LOG_INFO, "allgather-reducescatter goes over NCCL: {}", error.text());
    }
    return make_gather_nccl(params);
}

}  // namespace

const ManagerKind allgather_reducescatter_kind = {
    MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, "allgather-reducescatter",
    "every rank receives every token, through symmetric memory; over NCCL where ranks have none, one rank a GPU", &device_available, &gather_query,
    &gather_make};

}  // namespace moelink
