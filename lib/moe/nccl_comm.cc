#include "moe/nccl_comm.hpp"

#include "group/agreement.hpp"

#include <thread>

namespace moelink {

namespace {

// NCCL refuses two ranks on one GPU, but only after a wait; say so at once.
void require_own_gpu(Group &group, const Device &device, const Deadline &deadline) {
    if (!device.on_cuda()) return;
    std::vector<GpuName> all = group.allgather(device.gpu_name(), deadline);
    for (size_t a = 0; a < all.size(); ++a) {
        for (size_t b = a + 1; b < all.size(); ++b) {
            if (all[a] == all[b]) {
                fail(MOELINK_ERR_UNSUPPORTED, "ranks {} and {} share a GPU, which NCCL does not allow; use another kind, or one rank a GPU", a, b);
            }
        }
    }
}

void await(NcclComm comm, const Deadline &deadline) {
    constexpr std::chrono::microseconds nap{200};
    while (!nccl_settled(comm)) {
        if (deadline.passed()) fail(MOELINK_ERR_TIMEOUT, "ncclCommInitRankConfig: not every rank has joined by the deadline");
        std::this_thread::sleep_for(nap);
    }
}

}  // namespace

moelink_status nccl_available(std::string *why) {
    try {
        nccl();
        return MOELINK_OK;
    } catch (const Error &error) {
        *why = error.text();
        return error.status();
    }
}

bool nccl_settled(NcclComm comm) {
    NcclResult state = nccl_success;
    check_nccl(nccl().comm_async_error(comm, &state), "ncclCommGetAsyncError", comm);
    check_nccl(state, "NCCL", comm);
    return state != nccl_in_progress;
}

NcclComm make_nccl_comm(Group &group, const Device &device, bool blocking) {
    require_own_gpu(group, device, group.deadline());
    NcclUniqueId id{};
    step(group, group.deadline(), [&] {
        DeviceGuard guard(device);
        if (group.rank() == 0) check_nccl(nccl().unique_id(&id), "ncclGetUniqueId");
    });
    group.broadcast(&id, sizeof id, 0, group.deadline());
    NcclComm comm = nullptr;
    const Outcome joined = attempt([&] {
        DeviceGuard guard(device);
        NcclConfig config;
        config.blocking = blocking ? 1 : 0;
        check_nccl(nccl().comm_init_rank_config(&comm, group.size(), id, group.rank(), &config), "ncclCommInitRankConfig");
        if (!blocking) await(comm, group.deadline());
    });
    try {
        settle(group, joined, group.deadline());  // a fresh deadline: NCCL has taken its time
    } catch (...) {
        if (comm != nullptr) {
            DeviceGuard guard(device);
            nccl().comm_abort(comm);
        }
        throw;
    }
    return comm;
}

}  // namespace moelink
