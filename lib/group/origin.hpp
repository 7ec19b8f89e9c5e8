// The group that a new one is split from, while the new one is being opened.
#pragma once

#include "base/deadline.hpp"

#include <moelink/base.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

namespace moelink {

// How that group ended, if it did.
struct Origin {
    moelink_status fault = MOELINK_OK;
    std::string text;

    void note(moelink_status status, const std::string &why) {
        fault = status;
        text = "the group that this one is split from is over: " + why;
    }
};

enum class Opening { over, late, orphaned };

// Waits, under the lock of `changed` and of the origin, until over() holds, the deadline passes or the origin has ended.
template <class Over>
Opening wait_to_open(std::unique_lock<std::mutex> &lock, std::condition_variable &changed, const Origin &origin,
                     const Deadline &deadline, Over &&over) {
    if (!changed.wait_until(lock, deadline.at(), [&] { return over() || origin.fault != MOELINK_OK; })) return Opening::late;
    // A rank that has the outcome already may leave its old group at once; then this rank's outcome is on its way.
    constexpr std::chrono::seconds patience{1};
    if (!over() && origin.fault != MOELINK_ERR_ABORTED) {
        changed.wait_until(lock, std::min(deadline.at(), Deadline::clock::now() + patience), over);
    }
    return over() ? Opening::over : Opening::orphaned;
}

}  // namespace moelink
