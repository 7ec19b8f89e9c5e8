#include "base/guard.hpp"
#include "base/params.hpp"
#include "memory/choice.hpp"
#include "memory/memory.hpp"
#include "memory/request.hpp"

using namespace moelink;

namespace {

constexpr moelink_memory_params default_params = MOELINK_MEMORY_PARAMS_INIT;

// Runs a collective body and leaves its error with the group too.
template <class Body>
moelink_status collective(const char *name, moelink_group *group, Body &&body) {
    return guard(name, [&] {
        Ref<Group> object = not_null(group, "group")->object;
        try {
            body(object);
        } catch (const Error &error) {
            object->note_error(fmt::format("{}: {}", name, error.text()));
            throw;
        }
    });
}

// Arguments that only this rank can see; the others are told, so that none of them waits.
template <class Check>
auto checked(Group &group, Check &&check) {
    try {
        return check();
    } catch (const Error &error) {
        refuse_request(group, error, group.deadline());
    }
}

}  // namespace

void moelink_memory_params_init(moelink_memory_params *params) {
    if (params != nullptr) *params = default_params;
}

void moelink_memory_info_init(moelink_memory_info *info) {
    if (info != nullptr) *info = MOELINK_MEMORY_INFO_INIT;
}

moelink_status moelink_memory_query(moelink_group *group, const moelink_memory_params *params, moelink_memory_info *out,
                                    char *reasons, uint64_t reasons_bytes) {
    return collective("moelink_memory_query", group, [&](const Ref<Group> &object) {
        moelink_memory_params read = checked(*object, [&] {
            check_output(out, "out");
            return read_params(params, default_params, "params");
        });
        std::string text;
        moelink_memory_info info = Memory::query(*object, read, &text);
        write_output(out, info, "out");
        write_text(text, reasons, reasons_bytes);
        if (info.provider == MOELINK_MEMORY_AUTO) {
            fail(MOELINK_ERR_UNSUPPORTED, "no provider of symmetric memory works: {}", one_line(text));
        }
    });
}

moelink_status moelink_memory_create(moelink_group *group, const moelink_memory_params *params, moelink_memory **out) {
    if (out != nullptr) *out = nullptr;
    return collective("moelink_memory_create", group, [&](const Ref<Group> &object) {
        moelink_memory_params read = checked(*object, [&] {
            not_null(out, "out");
            return read_params(params, default_params, "params");
        });
        auto handle = std::make_unique<moelink_memory>();
        handle->object = Memory::create(object, read);
        *out = handle.release();
    });
}

moelink_status moelink_memory_peer(const moelink_memory *memory, int32_t rank, void **out_address) {
    return guard("moelink_memory_peer", [&] {
        const Memory &object = *not_null(memory, "memory")->object;
        not_null(out_address, "out_address");
        if (rank < 0 || rank >= object.info().ranks) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "rank is {}, not one of 0 to {}", rank, object.info().ranks - 1);
        }
        *out_address = object.peer(rank);
    });
}

moelink_status moelink_memory_describe(const moelink_memory *memory, moelink_memory_info *out, char *reasons,
                                       uint64_t reasons_bytes) {
    return guard("moelink_memory_describe", [&] {
        const Memory &object = *not_null(memory, "memory")->object;
        write_output(out, object.info(), "out");
        write_text(object.reasons(), reasons, reasons_bytes);
    });
}

void moelink_memory_destroy(moelink_memory *memory) {
    guard("moelink_memory_destroy", [&] { delete memory; });
}
