// The rows of one token as they travel: as the caller has them, or quantized on their way.
#pragma once

#include "../launch.hpp"

#include <vector>

namespace moelink::kernels::host {

// `Rows`: what has source, source_stride and row_bytes, of each payload.
template <class Rows>
class TokenRows {
public:
    TokenRows(QuantizeForm quantize, const Rows *rows) : quantize_(quantize), rows_(rows) {
        if (quantize == quantize_none) return;
        values_.resize(rows[0].row_bytes);
        scales_.resize(rows[1].row_bytes);
    }

    void read(int64_t token) {
        token_ = static_cast<uint64_t>(token);
        if (quantize_ != quantize_none) quantize_row(quantize_, source(0), values_.size(), values_.data(), scales_.data());
    }

    const unsigned char *of(int payload) const {
        if (quantize_ != quantize_none && payload <= 1) return payload == 0 ? values_.data() : scales_.data();
        return source(payload);
    }

private:
    const unsigned char *source(int payload) const { return rows_[payload].source + token_ * rows_[payload].source_stride; }

    QuantizeForm quantize_;
    const Rows *rows_;
    uint64_t token_ = 0;
    std::vector<unsigned char> values_, scales_;
};

}  // namespace moelink::kernels::host
