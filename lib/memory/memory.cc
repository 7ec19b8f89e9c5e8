#include "memory/memory.hpp"

#include "base/log.hpp"
#include "memory/choice.hpp"

#if MOELINK_CUDA
#include "driver/cuda.hpp"
#endif

namespace moelink {

namespace {

#if MOELINK_CUDA
// Keeps the device's context from being made and lost again with every trial. Without one the providers say why themselves.
std::shared_ptr<void> hold_device(const Group &group) {
    if (!group.on_cuda()) return nullptr;
    try {
        return std::make_shared<PrimaryContext>(group.ordinal());
    } catch (const Error &) {
        return nullptr;
    }
}
#else
std::shared_ptr<void> hold_device(const Group &) { return nullptr; }
#endif

}  // namespace

Memory::Memory(Ref<Group> group, moelink_memory_info info, std::string reasons, std::unique_ptr<Mapping> mapping)
    : group_(std::move(group)), info_(info), reasons_(std::move(reasons)), mapping_(std::move(mapping)),
      peers_(mapping_->peers) {}

Ref<Memory> Memory::create(Ref<Group> group, const moelink_memory_params &params) {
    Deadline deadline = group->deadline();
    Request request = agree_on_request(*group, params, Purpose::create, deadline);
    if (request.provider == MOELINK_MEMORY_EXTERNAL) {
        moelink_memory_info info = external_info(*group, request);
        std::unique_ptr<Copies> copies = map_external(request.external, request.bytes);
        return Ref<Memory>::adopt(new Memory(std::move(group), info, "external: taken\n", std::move(copies)));
    }
    std::shared_ptr<void> device = hold_device(*group);
    Choice choice(*group, request, false, deadline);
    if (choice.taken() == nullptr) choice.fail_alike();
    std::unique_ptr<Copies> copies = choice.taken()->map(*group, choice.info().bytes, deadline);
    try {
        // No rank returns, and so no peer writes, before all copies are clear.
        step(*group, deadline, [&] { copies->clear(); });
    } catch (const Refusal &) {
        retire(*group, std::move(copies), deadline);
        throw;
    }
    log(MOELINK_LOG_DEBUG, "rank {}: {} bytes of {} memory on each of {} ranks", group->rank(), choice.info().bytes,
        choice.taken()->name, group->size());
    return Ref<Memory>::adopt(new Memory(std::move(group), choice.info(), choice.reasons(), std::move(copies)));
}

moelink_memory_info Memory::query(Group &group, const moelink_memory_params &params, std::string *reasons) {
    Deadline deadline = group.deadline();
    Request request = agree_on_request(group, params, Purpose::query, deadline);
    if (request.provider == MOELINK_MEMORY_EXTERNAL) {
        if (reasons != nullptr) *reasons = "external: the caller's addresses are not tried\n";
        return external_info(group, request);
    }
    std::shared_ptr<void> device = hold_device(group);
    Choice choice(group, request, true, deadline);
    if (reasons != nullptr) *reasons = choice.reasons();
    return choice.info();
}

}  // namespace moelink
