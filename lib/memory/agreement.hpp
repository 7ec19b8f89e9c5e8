// Steps that every rank takes and whose outcome all ranks learn, so that all go on or all give up.
#pragma once

#include "group/group.hpp"

#include <new>

namespace moelink {

// A failure that every rank throws alike: the group is well, some rank could not do its part.
class Refusal : public Error {
public:
    using Error::Error;
};

// Collective. Throws Refusal on all ranks with the status of the lowest rank that failed and "rank R: text".
void settle(Group &group, moelink_status mine, const std::string &text, const Deadline &deadline);

// Collective. Runs this rank's part, then settles. body makes no collective call.
template <class Body>
void step(Group &group, const Deadline &deadline, Body &&body) {
    moelink_status status = MOELINK_OK;
    std::string text;
    try {
        body();
    } catch (const Error &error) {
        status = error.status();
        text = error.text();
    } catch (const std::bad_alloc &) {
        status = MOELINK_ERR_OUT_OF_MEMORY;
        text = "host memory is exhausted";
    } catch (const std::exception &error) {
        status = MOELINK_ERR_INTERNAL;
        text = error.what();
    }
    settle(group, status, text, deadline);
}

}  // namespace moelink
