#include "memory/memory.hpp"

#include "base/log.hpp"
#include "memory/choice.hpp"

#include <mutex>

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

// All objects of this process.
struct Living {
    std::mutex mutex;
    std::vector<Memory *> all;
};

Living &living() {
    static auto *value = new Living;  // never freed: objects may go while the process exits
    return *value;
}

template <class Is>
Ref<Memory> find_living(Is &&is) {
    std::lock_guard lock(living().mutex);
    for (Memory *memory : living().all) {
        if (is(*memory) && memory->retain_if_alive()) return Ref<Memory>::adopt(memory);
    }
    return {};
}

}  // namespace

Memory::Memory(Ref<Group> group, const Name &name, moelink_memory_info info, std::string reasons, std::unique_ptr<Mapping> mapping)
    : group_(std::move(group)), name_(name), info_(info), reasons_(std::move(reasons)), mapping_(std::move(mapping)),
      peers_(mapping_->peers) {
    std::lock_guard lock(living().mutex);
    living().all.push_back(this);
}

Memory::~Memory() {
    std::lock_guard lock(living().mutex);
    std::erase(living().all, this);
}

Ref<Memory> Memory::holding(const void *address, uint64_t size) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    return find_living([&](const Memory &memory) {
        const auto base = reinterpret_cast<uintptr_t>(memory.mine());
        return at >= base && at - base <= memory.bytes() && size <= memory.bytes() - (at - base);
    });
}

Ref<Memory> Memory::named(const Name &name, int ordinal) {
    return find_living([&](const Memory &memory) { return memory.name_ == name && memory.group_->ordinal() == ordinal; });
}

Ref<Memory> Memory::create(Ref<Group> group, const moelink_memory_params &params) {
    Deadline deadline = group->deadline();
    Request request = agree_on_request(*group, params, Purpose::create, deadline);
    if (request.provider == MOELINK_MEMORY_EXTERNAL) {
        moelink_memory_info info = external_info(*group, request);
        std::unique_ptr<Copies> copies = map_external(request.external, request.bytes);
        return Ref<Memory>::adopt(new Memory(std::move(group), request.name, info, "external: taken\n", std::move(copies)));
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
    return Ref<Memory>::adopt(new Memory(std::move(group), request.name, choice.info(), choice.reasons(), std::move(copies)));
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
