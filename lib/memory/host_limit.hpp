// How much memory this process may still take, so that asking for too much is an error and not a kill.
#pragma once

#include <cstdint>

namespace moelink {

// [bytes] the least that the host and the control groups of this process have left; UINT64_MAX where neither tells.
uint64_t host_bytes_available();

}  // namespace moelink
