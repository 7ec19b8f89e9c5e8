// Adding rows of values on the host: a plain version, and vector versions of the same arithmetic that are chosen at run time.
#pragma once

#include "../launch.hpp"

#include <span>

namespace moelink::kernels::host {

// out[i] = the sum of weights[r] * rows[r][i] over the rows in order: in fp32, from +0, product and sum each rounded to nearest
// even, then once to the type of the values. A NaN of any kind becomes the type's positive quiet NaN without payload, so every
// version gives the same bits. weights nullptr: all are 1. count may be 0; addresses need no alignment; out overlaps no row.
using SumRows = void (*)(unsigned char *out, const unsigned char *const *rows, const float *weights, int count, size_t values);

struct SumCode {
    const char *name;
    bool (*runs_here)();
    SumRows f32;
    SumRows f16;
    SumRows bf16;

    SumRows of(int32_t value_type) const { return value_type == value_f32 ? f32 : value_type == value_f16 ? f16 : bf16; }
};

// The plain version first, then from narrow to wide; all that were built, also those that this processor cannot run.
std::span<const SumCode> sum_codes();
// The widest that runs here.
const SumCode &best_sum_code();

}  // namespace moelink::kernels::host
