// Steps that every rank takes and whose outcome all ranks learn, so that all go on or all give up.
#pragma once

#include "base/guard.hpp"
#include "group/group.hpp"

namespace moelink {

// A failure that every rank throws alike: the group is well, some rank could not do its part.
class Refusal : public Error {
public:
    using Error::Error;
};

// Collective. Throws Refusal on all ranks with the status of the lowest rank that failed (a secondhand failure counts only where
// there is no other) and "rank R: text".
void settle(Group &group, const Outcome &mine, const Deadline &deadline);

// Collective. Runs this rank's part, then settles. body makes no collective call.
template <class Body>
void step(Group &group, const Deadline &deadline, Body &&body) {
    const Outcome mine = attempt(body);
    settle(group, mine, deadline);
}

}  // namespace moelink
