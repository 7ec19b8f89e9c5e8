// Passes file descriptors between the ranks of one host.
#pragma once

#include "group/agreement.hpp"
#include "memory/fd.hpp"

#include <functional>

namespace moelink {

// Collective. Hands a duplicate of `mine` to every peer and every peer's descriptor to `take`, on this thread and in any order.
// Works between processes and between threads of one process, over Unix sockets of this call alone: abstract ones with random
// names, or files in the group's socket_dir. A peer must run under the same user (SO_PEERCRED) and know a random token that
// only members of the group have. Throws Refusal alike on all ranks, also when a `take` throws; it gives up when half of what is
// left of the deadline has passed, so that the ranks can still agree on it.
void exchange_fds(Group &group, int mine, const Deadline &deadline, const std::function<void(int rank, Fd fd)> &take);

}  // namespace moelink
