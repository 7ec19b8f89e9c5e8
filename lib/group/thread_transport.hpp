// Ranks that are threads of one process: a board in the process's own memory, no sockets. Also the transport of a group of one.
#pragma once

#include "group/group.hpp"

#include <vector>

namespace moelink {

// One transport for each rank.
std::vector<std::unique_ptr<Transport>> make_thread_transports(int size);

}  // namespace moelink
