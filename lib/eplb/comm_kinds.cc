// The table of communicator kinds, what AUTO means, and their names.
#include "eplb/comm_backend.hpp"

#include "base/guard.hpp"
#include "base/params.hpp"

#include <cstring>

namespace moelink::eplb {

namespace {

// In the order in which AUTO prefers them, the caller's NCCL communicator aside.
const CommKind *const kinds[] = {&comm_read_kind, &comm_nccl_own_kind, &comm_staged_kind, &comm_nccl_kind};

// "a b c" holds "b".
bool lists(const char *names, const std::string &name) {
    if (name.empty() || name.find(' ') != std::string::npos) return false;
    return (std::string(" ") + names + " ").find(" " + name + " ") != std::string::npos;
}

int32_t kind_of(const std::string &name) {
    if (name == "auto") return MOELINK_EPLB_COMM_AUTO;
    std::string known = "auto";
    for (const CommKind *row : kinds) {
        if (name == row->name || lists(row->legacy, name)) return row->kind;
        known += std::string(", ") + row->name;
        if (*row->legacy != '\0') known += std::string(" (") + row->legacy + ")";
    }
    fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no communicator kind \"{}\"; there are: {}", name, known);
}

}  // namespace

const CommKind *find_comm_kind(int32_t kind) {
    for (const CommKind *row : kinds) {
        if (row->kind == kind) return row;
    }
    return nullptr;
}

int32_t choose_comm_kind(uint32_t usable, int32_t device, bool one_host, const moelink_eplb_comm_params &params, std::string *why) {
    auto can = [&](int32_t kind) { return (usable >> kind & 1) != 0; };
    if (can(MOELINK_EPLB_COMM_READ) && (one_host || device == MOELINK_DEVICE_HOST)) {
        *why = one_host ? "all ranks are on one host, so peers' live rows can be read"
                        : "of the kinds for the host device it reads live rows where it can, and stages the others";
        return MOELINK_EPLB_COMM_READ;
    }
    if (can(MOELINK_EPLB_COMM_NCCL) && (params.flags & MOELINK_EPLB_COMM_F_ASYNC) == 0) {
        *why = "ranks are on several hosts, and the caller gave an NCCL communicator that rounds do not share with a running model";
        return MOELINK_EPLB_COMM_NCCL;
    }
    if (can(MOELINK_EPLB_COMM_NCCL_OWN)) {
        *why = (params.flags & MOELINK_EPLB_COMM_F_ASYNC) != 0 && params.nccl_comm != nullptr
                   ? "rounds run beside the model, so the caller's NCCL communicator is not shared"
                   : "ranks are on several hosts, and the caller gave no NCCL communicator";
        return MOELINK_EPLB_COMM_NCCL_OWN;
    }
    *why = "ranks are on several hosts, and not every rank can use NCCL";
    return MOELINK_EPLB_COMM_STAGED;
}

Payload make_message(const MessageHead &head, const void *body, uint64_t bytes) {
    auto frame = std::make_shared<Bytes>(sizeof head + bytes);
    std::memcpy(frame->data(), &head, sizeof head);
    if (bytes != 0) std::memcpy(frame->data() + sizeof head, body, bytes);
    return Payload(std::move(frame));
}

}  // namespace moelink::eplb

using namespace moelink;
using namespace moelink::eplb;

const char *moelink_eplb_comm_kind_name(int32_t kind) {
    if (kind == MOELINK_EPLB_COMM_AUTO) return "auto";
    const CommKind *row = find_comm_kind(kind);
    return row != nullptr ? row->name : "unknown";
}

moelink_status moelink_eplb_comm_kind_of(const char *name, int32_t *out_kind) {
    return guard("moelink_eplb_comm_kind_of", [&] {
        not_null(out_kind, "out_kind");
        *out_kind = kind_of(not_null(name, "name"));
    });
}

moelink_status moelink_eplb_comm_kind_describe(int32_t kind, int32_t device, char *text, uint64_t bytes) {
    return guard("moelink_eplb_comm_kind_describe", [&]() -> moelink_status {
        not_null(text, "text");
        const CommKind *row = find_comm_kind(kind);
        if (row == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no communicator kind {}", kind);
        if (device != MOELINK_DEVICE_HOST && device != MOELINK_DEVICE_CUDA) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "device is {}, must be MOELINK_DEVICE_HOST or MOELINK_DEVICE_CUDA", device);
        }
        std::string why;
        const moelink_status status = row->available(device, &why);
        const std::string line = status == MOELINK_OK ? row->what : fmt::format("{}; not here: {}", row->what, why);
        if (!write_text(line, text, bytes)) fail(MOELINK_ERR_TOO_SMALL, "the text needs {} bytes, {} were given", line.size() + 1, bytes);
        return status;
    });
}
