#include <moelink/base.h>

namespace {

struct Row {
    moelink_status status;
    const char *name;
    const char *text;
};

#define ROW(status, text) {status, #status, text}
constexpr Row rows[] = {
    ROW(MOELINK_OK, "done"),
    ROW(MOELINK_IN_PROGRESS, "started, not finished"),
    ROW(MOELINK_NOT_READY, "nothing to report yet"),
    ROW(MOELINK_ERR_INVALID_ARGUMENT, "an argument is not valid; nothing was changed"),
    ROW(MOELINK_ERR_INVALID_STATE, "the object is not in a state that allows this call; nothing was changed"),
    ROW(MOELINK_ERR_UNSUPPORTED, "this machine or this build cannot do that"),
    ROW(MOELINK_ERR_OUT_OF_MEMORY, "not enough memory; nothing was changed"),
    ROW(MOELINK_ERR_TOO_SMALL, "a buffer or a workspace is too small; nothing was changed"),
    ROW(MOELINK_ERR_MISMATCH, "the ranks passed values that contradict each other"),
    ROW(MOELINK_ERR_NO_DRIVER, "a driver or library that this call needs is not installed"),
    ROW(MOELINK_ERR_STALE, "a captured graph outlived the workspace that it was captured over; capture it again"),
    ROW(MOELINK_ERR_INTERNAL, "a fault inside the library"),
    ROW(MOELINK_ERR_TIMEOUT, "a deadline passed while waiting for a peer; the round is lost"),
    ROW(MOELINK_ERR_PEER_EXITED, "a peer is gone; the round is lost"),
    ROW(MOELINK_ERR_PEER_UNREACHABLE, "a peer cannot be reached"),
    ROW(MOELINK_ERR_ABORTED, "the group was aborted"),
    ROW(MOELINK_ERR_AUTHENTICATION, "a peer did not prove that it knows the group's secret"),
    ROW(MOELINK_ERR_PROTOCOL, "a peer sent what does not belong to the protocol"),
    ROW(MOELINK_ERR_DEVICE, "the device reported an error; its context is lost"),
};
#undef ROW

const Row *find(moelink_status status) {
    for (const Row &row : rows) {
        if (row.status == status) return &row;
    }
    return nullptr;
}

}  // namespace

const char *moelink_status_name(moelink_status status) {
    const Row *row = find(status);
    return row != nullptr ? row->name : "MOELINK_UNKNOWN_STATUS";
}

const char *moelink_status_string(moelink_status status) {
    if (const Row *row = find(status)) return row->text;
    if (status > 0) return "unknown to this version; not an error";
    if (status > -100) return "unknown to this version; the call failed and nothing was changed";
    if (status > -120) return "unknown to this version; a peer is late or gone and the round is lost";
    if (status > -200) return "unknown to this version; the group is over";
    return "unknown to this version; the device context is lost";
}
