// In what form rows travel in a dispatch.
#pragma once

#include <cstdint>
#include <string>

#include "values.hpp"

namespace perf {

struct Send {
    const char *name;
    bool fp8;     // E4M3 values and a scale for each 128, in place of rows of the run's type
    bool inside;  // dispatch makes them
    bool e8m0;    // scales are bytes, powers of two; else fp32
};
// Throws std::invalid_argument for a name that is none of rows, fp8, fp8-quantized, fp8-quantized-e8m0.
Send send_of(const std::string &name);

// Bytes of a row as it travels: values, then scales.
inline uint64_t sent_value_bytes(const Send &send, const Dtype &dtype, int hidden) {
    return static_cast<uint64_t>(hidden) * (send.fp8 ? 1 : static_cast<uint64_t>(dtype.bytes));
}
inline uint64_t sent_scale_bytes(const Send &send, int hidden) {
    return send.fp8 ? static_cast<uint64_t>(hidden / scale_block) * (send.e8m0 ? 1 : sizeof(float)) : 0;
}
inline uint64_t sent_bytes(const Send &send, const Dtype &dtype, int hidden) {
    return sent_value_bytes(send, dtype, hidden) + sent_scale_bytes(send, hidden);
}

// A row as it travels, and the values that a receiver reads in it.
void send_row(const Send &send, const Dtype &dtype, const void *row, int hidden, void *sent);
void read_sent(const Send &send, const Dtype &dtype, const void *sent, int hidden, float *out);

}  // namespace perf
