// A layer's tensors: read from the caller, and found equal on all ranks.
#pragma once

#include "eplb/comm_backend.hpp"

namespace moelink::eplb {

// Checks one rank's tensors. Throws INVALID_ARGUMENT naming the tensor.
Layer read_layer(int32_t number, const moelink_eplb_tensor *tensors, int32_t count, int32_t local_slots);

// Collective: ranks name the same layer with the same shapes; fills in what the others have. Throws alike on all ranks.
void agree_on_layer(Group &group, Layer &layer, const Deadline &deadline);

// What a rank believes about a layer, in a number that is never 0.
uint64_t context_code(const Layer &layer, const std::vector<int32_t> &old_indices);

}  // namespace moelink::eplb
