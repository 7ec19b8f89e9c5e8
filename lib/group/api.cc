#include "base/guard.hpp"
#include "base/params.hpp"
#include "group/bootstrap.hpp"
#include "group/place.hpp"
#include "group/rendezvous.hpp"

#include <algorithm>
#include <memory>
#include <vector>

namespace {

using moelink::fail;
using moelink::Group;
using moelink::guard;
using moelink::not_null;
using moelink::Ref;

moelink_group *handle(Ref<Group> group) { return new moelink_group{std::move(group)}; }

// The guard, and the group keeps the text of a failure too.
template <class Body>
moelink_status group_guard(const char *call, const moelink_group *group, Body &&body) noexcept {
    moelink_status status = guard(call, [&] { body(*not_null(group, "group")->object); });
    if (status < MOELINK_OK && group != nullptr) group->object->note_error(moelink_last_error());
    return status;
}

// Calls the caller's release function once, however the creation ends.
class Release {
public:
    explicit Release(const moelink_bootstrap &boot) : boot_(boot) {}
    Release(const Release &) = delete;
    Release &operator=(const Release &) = delete;
    ~Release() {
        if (boot_.release != nullptr) boot_.release(boot_.user);
    }

private:
    const moelink_bootstrap &boot_;
};

void check_buffer(const void *buffer, uint64_t bytes, const char *name) {
    if (bytes != 0 && buffer == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL, bytes is {}", name, bytes);
}

}  // namespace

void moelink_group_params_init(moelink_group_params *params) {
    const moelink_group_params defaults = MOELINK_GROUP_PARAMS_INIT;
    if (params != nullptr) *params = defaults;
}

void moelink_bootstrap_init(moelink_bootstrap *bootstrap) {
    const moelink_bootstrap defaults = MOELINK_BOOTSTRAP_INIT;
    if (bootstrap != nullptr) *bootstrap = defaults;
}

moelink_status moelink_rendezvous_create(const char *interface_or_null, int32_t size, moelink_rendezvous **out,
                                         moelink_unique_id *out_id) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_rendezvous_create", [&] {
        not_null(out, "out");
        not_null(out_id, "out_id");
        if (size < 1 || size > MOELINK_GROUP_MAX_RANKS) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "size {} is not in 1 .. {}", size, static_cast<int>(MOELINK_GROUP_MAX_RANKS));
        }
        auto *rendezvous = new moelink_rendezvous(interface_or_null, size);
        *out_id = rendezvous->object->id();
        *out = rendezvous;
    });
}

uint64_t moelink_rendezvous_strangers(const moelink_rendezvous *rendezvous) {
    return rendezvous != nullptr ? rendezvous->object->strangers() : 0;
}

void moelink_rendezvous_destroy(moelink_rendezvous *rendezvous) {
    guard("moelink_rendezvous_destroy", [&] {
        // In a forked child the server is the parent's.
        if (rendezvous != nullptr && getpid() != rendezvous->process) (void)rendezvous->object.release();
        delete rendezvous;
    });
}

moelink_status moelink_group_create(const moelink_unique_id *id, const moelink_group_params *params, moelink_group **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_group_create", [&] {
        not_null(out, "out");
        not_null(id, "id");
        *out = handle(moelink::join_by_id(*id, moelink::read_place(params, "params")));
    });
}

moelink_status moelink_group_create_with(const moelink_bootstrap *boot, const moelink_group_params *params, moelink_group **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_group_create_with", [&] {
        const moelink_bootstrap defaults = MOELINK_BOOTSTRAP_INIT;
        moelink_bootstrap read = moelink::read_params(boot, defaults, "boot");
        Release release(read);
        not_null(out, "out");
        if (read.allgather == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "boot.allgather is NULL");
        if (read.flags != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "boot.flags is {:#x}; no flag is defined", read.flags);
        *out = handle(moelink::join_with(read, moelink::read_place(params, "params")));
    });
}

moelink_status moelink_group_create_threads(int32_t size, const moelink_group_params *params_each, moelink_group **out_each) {
    return guard("moelink_group_create_threads", [&] {
        not_null(out_each, "out_each");
        if (size < 1 || size > MOELINK_GROUP_MAX_RANKS) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "size {} is not in 1 .. {}", size, static_cast<int>(MOELINK_GROUP_MAX_RANKS));
        }
        std::fill_n(out_each, size, nullptr);
        std::vector<Group::Place> places;
        // The array is laid out as its caller was compiled: the step is the caller's struct, not ours.
        const uint32_t step = params_each != nullptr ? params_each->struct_size : 0;
        for (int32_t i = 0; i < size; ++i) {
            moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
            if (params_each != nullptr) {
                const char *bytes = reinterpret_cast<const char *>(params_each) + uint64_t{step} * static_cast<uint32_t>(i);
                const auto *at = reinterpret_cast<const moelink_group_params *>(bytes);
                const std::string name = fmt::format("params_each[{}]", i);
                if (at->struct_size != step) {
                    fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.struct_size is {} and that of the first {}; they must be equal", name,
                         at->struct_size, step);
                }
                params = moelink::read_params(at, params, name.c_str());
            }
            params.rank = i;
            params.size = size;
            places.push_back(moelink::read_place(&params, fmt::format("params_each[{}]", i).c_str()));
        }
        std::vector<Ref<Group>> groups = moelink::make_threads(std::move(places));
        std::vector<std::unique_ptr<moelink_group>> handles;
        for (Ref<Group> &group : groups) handles.emplace_back(handle(std::move(group)));
        for (size_t i = 0; i < handles.size(); ++i) out_each[i] = handles[i].release();
    });
}

moelink_status moelink_group_split(moelink_group *group, int32_t color, int32_t key, moelink_group **out) {
    if (out != nullptr) *out = nullptr;
    return group_guard("moelink_group_split", group, [&](Group &object) {
        not_null(out, "out");
        Ref<Group> part = object.split(color, key);
        if (part) *out = handle(std::move(part));
    });
}

int32_t moelink_group_rank(const moelink_group *group) { return group != nullptr ? group->object->rank() : 0; }

int32_t moelink_group_size(const moelink_group *group) { return group != nullptr ? group->object->size() : 0; }

int32_t moelink_group_device(const moelink_group *group) { return group != nullptr ? group->object->device() : 0; }

int32_t moelink_group_device_ordinal(const moelink_group *group) { return group != nullptr ? group->object->ordinal() : -1; }

uint64_t moelink_group_strangers(const moelink_group *group) { return group != nullptr ? group->object->strangers() : 0; }

moelink_status moelink_group_barrier(moelink_group *group) {
    return group_guard("moelink_group_barrier", group, [&](Group &object) { object.barrier(object.deadline()); });
}

moelink_status moelink_group_allgather(moelink_group *group, const void *mine, void *all, uint64_t bytes) {
    return group_guard("moelink_group_allgather", group, [&](Group &object) {
        check_buffer(mine, bytes, "mine");
        check_buffer(all, bytes, "all");
        object.allgather(mine, all, bytes, object.deadline());
    });
}

moelink_status moelink_group_broadcast(moelink_group *group, void *data, uint64_t bytes, int32_t root) {
    return group_guard("moelink_group_broadcast", group, [&](Group &object) {
        check_buffer(data, bytes, "data");
        object.broadcast(data, bytes, root, object.deadline());
    });
}

moelink_status moelink_group_fault(const moelink_group *group) {
    moelink_status fault = MOELINK_OK;
    moelink_status status = group_guard("moelink_group_fault", group, [&](Group &object) {
        std::string text;
        fault = object.fault(&text);
        if (fault != MOELINK_OK) object.note_error(text);
    });
    return status != MOELINK_OK ? status : fault;
}

const char *moelink_group_error(const moelink_group *group) {
    const char *text = "";
    guard("moelink_group_error", [&] {
        if (group != nullptr) text = moelink::keep_text(group->object->error());
    });
    return text;
}

moelink_status moelink_group_finalize(moelink_group *group) {
    return group_guard("moelink_group_finalize", group, [&](Group &object) { object.finalize(); });
}

moelink_status moelink_group_abort(moelink_group *group) {
    return group_guard("moelink_group_abort", group, [&](Group &object) { object.abort(); });
}

void moelink_group_destroy(moelink_group *group) {
    guard("moelink_group_destroy", [&] { delete group; });
}
