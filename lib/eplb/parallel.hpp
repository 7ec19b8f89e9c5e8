// Layers are planned independently of each other, so threads share them out.
#pragma once

#include <functional>

namespace moelink::eplb {

// Calls body(layer) for every layer, on up to `threads` threads (0: the CPUs this process may use), all of which are gone on
// return. body must not touch another layer's results. What a body throws is thrown here, of several the first.
void for_each_layer(int layers, int threads, const std::function<void(int layer)> &body);

}  // namespace moelink::eplb
