// Quantization as its definition reads (moe.h), for the naive manager.
#pragma once

#include <vector>

namespace moelink {

struct QuantizedRows {
    std::vector<unsigned char> values;  // E4M3
    std::vector<unsigned char> scales;  // F32 or E8M0, one for each 128 values
};

// `rows`: BF16 values, a multiple of 128 in each row.
QuantizedRows quantize_naively(const std::vector<unsigned char> &rows, bool power_of_two);

}  // namespace moelink
