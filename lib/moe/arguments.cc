#include "moe/arguments.hpp"

#include "base/params.hpp"

namespace moelink {

namespace {

constexpr uint64_t most_row_bytes = uint64_t{1} << 30;

void check_flags(uint32_t flags, uint32_t known) {
    if ((flags & ~known) != 0) fail(MOELINK_ERR_UNSUPPORTED, "flags has bits that this library does not know: {:#x}", flags);
}

void check_address(const char *name, const void *at, uint64_t size) {
    if (reinterpret_cast<uint64_t>(at) % size == 0) return;
    fail(MOELINK_ERR_INVALID_ARGUMENT, "{} has an address that is no multiple of its values' {} bytes", name, size);
}

// Rows of a caller, with the stride filled in.
moelink_rows read_rows(const moelink_rows &rows, const char *name) {
    moelink_rows result = rows;
    if (result.row_stride == 0) result.row_stride = result.row_bytes;
    if (result.row_stride < result.row_bytes) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.row_stride is {}, less than its row_bytes {}", name, rows.row_stride, rows.row_bytes);
    }
    if (result.reserved != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.reserved is {}, must be 0", name, rows.reserved);
    return result;
}

uint64_t value_bytes(int32_t dtype) {
    switch (dtype) {
        case MOELINK_DTYPE_F32: return 4;
        case MOELINK_DTYPE_F16:
        case MOELINK_DTYPE_BF16: return 2;
        default: return 0;
    }
}

void check_budget(int32_t budget) {
    if (budget < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "sm_budget is {}, must be 0 or more", budget);
}

}  // namespace

void check_layout(const moelink_dispatch_args &args, const Config &config, int ranks) {
    if (args.layout < MOELINK_LAYOUT_RANK_MAJOR || args.layout > MOELINK_LAYOUT_EXPERT_PADDED) {
        fail(MOELINK_ERR_UNSUPPORTED, "layout is {}, which this library does not know", args.layout);
    }
    if ((config.layouts >> args.layout & 1) == 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "layout is {}, and the config's layouts are {:#x}; ensure or reinit with it", moelink_layout_name(args.layout),
             config.layouts);
    }
    if (args.alignment < 0 || args.alignment > config.alignment) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "alignment is {}, must be 0 to the config's {}", args.alignment, config.alignment);
    }
    if (args.output_rows < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "output_rows is {}", args.output_rows);
    const int64_t received = int64_t{ranks} * config.max_tokens;
    if (args.layout == MOELINK_LAYOUT_RANK_MAJOR && args.outputs != nullptr && args.output_rows != 0 && args.output_rows < received) {
        fail(MOELINK_ERR_TOO_SMALL, "output_rows is {}; {} needs {}, slots_per_rank {} for each of {} ranks", args.output_rows,
             moelink_layout_name(args.layout), received, config.max_tokens, ranks);
    }
    if ((args.flags & MOELINK_DISPATCH_F_NO_ROUTING) != 0 && args.layout > MOELINK_LAYOUT_PACKED) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "layout is {}, and with MOELINK_DISPATCH_F_NO_ROUTING rows have no experts", moelink_layout_name(args.layout));
    }
}

namespace {

void check_rank_tokens(const moelink_dispatch_args &args, const Group &group) {
    if (args.rank_tokens_count < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens_count is {}", args.rank_tokens_count);
    if (args.rank_tokens == nullptr) return;
    if (args.rank_tokens_count != 0 && args.rank_tokens_count != group.size()) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens has {} entries and the group {} ranks; sizes of another group?", args.rank_tokens_count,
             group.size());
    }
    const int64_t mine = args.rank_tokens[group.rank()];
    // What a repeated dispatch calls num_tokens may be the bound of a count on the device.
    const bool bound = args.num_tokens_device != nullptr || (args.flags & MOELINK_DISPATCH_F_CACHED_ROUTING) != 0;
    if (mine != args.num_tokens && !bound) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens[{}] is {} and num_tokens {}; they must be equal", group.rank(), mine, args.num_tokens);
    }
}

// What dispatch and prepare share.
template <class Args>
void check_routing(const Args &args, const Config &config, bool needs_ids) {
    if (args.num_tokens < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "num_tokens is {}", args.num_tokens);
    if (args.num_tokens > config.max_tokens) {
        fail(MOELINK_ERR_TOO_SMALL, "num_tokens is {} and the workspace holds max_tokens {}; ensure or reinit with more", args.num_tokens,
             config.max_tokens);
    }
    if (args.topk_ids_dtype != MOELINK_DTYPE_I32 && args.topk_ids_dtype != MOELINK_DTYPE_I64) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "topk_ids_dtype is {}, must be MOELINK_DTYPE_I32 or MOELINK_DTYPE_I64", args.topk_ids_dtype);
    }
    if (args.topk_ids == nullptr && args.num_tokens > 0 && needs_ids) fail(MOELINK_ERR_INVALID_ARGUMENT, "topk_ids is NULL with {} tokens", args.num_tokens);
    check_address("topk_ids", args.topk_ids, args.topk_ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4);
    check_address("topk_weights", args.topk_weights, sizeof(float));
    check_address("num_tokens_device", args.num_tokens_device, sizeof(int32_t));
}

// The two payloads of a quantized dispatch as they travel.
kernels::QuantizeForm read_quantize(const moelink_dispatch_args &args, moelink_rows &values, moelink_rows &scales) {
    if (args.quantize == MOELINK_QUANTIZE_NONE) return kernels::quantize_none;
    if (args.quantize != MOELINK_QUANTIZE_F8E4M3_BLOCK128) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "quantize is {}, must be MOELINK_QUANTIZE_NONE or _F8E4M3_BLOCK128", args.quantize);
    }
    if (args.payload_count < 2) fail(MOELINK_ERR_INVALID_ARGUMENT, "payload_count is {}; quantize needs 2, the second for scales", args.payload_count);
    constexpr uint64_t block_bytes = kernels::quantize_block * sizeof(uint16_t);
    if (values.dtype != MOELINK_DTYPE_BF16 || values.row_bytes == 0 || values.row_bytes % block_bytes != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "payloads[0] has dtype {} and row_bytes {}; quantize needs MOELINK_DTYPE_BF16 and a multiple of {} bytes",
             values.dtype, values.row_bytes, block_bytes);
    }
    if (scales.data != nullptr || (scales.dtype != MOELINK_DTYPE_F32 && scales.dtype != MOELINK_DTYPE_E8M0)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "payloads[1] has data {} and dtype {}; quantize writes it: data NULL, dtype MOELINK_DTYPE_F32 or _E8M0",
             scales.data, scales.dtype);
    }
    if (values.data == nullptr && args.num_tokens > 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "payloads[0].data is NULL with {} tokens and quantize", args.num_tokens);
    }
    const bool wide = scales.dtype == MOELINK_DTYPE_F32;
    const uint64_t count = values.row_bytes / sizeof(uint16_t);
    values.row_bytes = count;
    values.dtype = MOELINK_DTYPE_F8E4M3;
    scales.row_bytes = scales.row_stride = count / kernels::quantize_block * (wide ? sizeof(float) : 1);
    return wide ? kernels::quantize_f32 : kernels::quantize_e8m0;
}

}  // namespace

void check_slot(int32_t slot, const Config &config) {
    if (slot < 0 || slot >= config.slots) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "slot is {}; the workspace has {} (0 to {})", slot, config.slots, config.slots - 1);
    }
}

DispatchCall read_dispatch(const moelink_dispatch_args *given, const Config &config, const Group &group) {
    moelink_dispatch_args defaults = MOELINK_DISPATCH_ARGS_INIT;
    DispatchCall call;
    call.args = read_params(given, defaults, "args");
    const moelink_dispatch_args &args = call.args;
    check_slot(args.slot, config);
    check_flags(args.flags, MOELINK_DISPATCH_F_CACHED_ROUTING | MOELINK_DISPATCH_F_SEND_ONLY | MOELINK_DISPATCH_F_NO_ROUTING);
    call.cached = (args.flags & MOELINK_DISPATCH_F_CACHED_ROUTING) != 0;
    call.routed = (args.flags & MOELINK_DISPATCH_F_NO_ROUTING) == 0;
    if ((args.flags & MOELINK_DISPATCH_F_SEND_ONLY) != 0) call.halves = kernels::half_send;
    if (!call.routed && (call.cached || args.topk_ids != nullptr || args.topk_weights != nullptr)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "MOELINK_DISPATCH_F_NO_ROUTING is set, and topk_ids, topk_weights or MOELINK_DISPATCH_F_CACHED_ROUTING is there too");
    }
    if (!call.cached) check_layout(args, config, group.size());
    check_rank_tokens(args, group);
    check_address("load_counts", args.load_counts, sizeof(int64_t));
    check_routing(args, config, call.routed && !call.cached);
    if (args.payload_count < 0 || args.payload_count > static_cast<int32_t>(config.payload_row_bytes.size())) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "payload_count is {}; the workspace was made for {}", args.payload_count,
             config.payload_row_bytes.size());
    }
    if (args.payload_count > 0 && args.payloads == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "payloads is NULL");
    call.payload_count = args.payload_count;
    check_budget(args.sm_budget);
    for (int32_t i = 0; i < args.payload_count; ++i) call.payloads[static_cast<size_t>(i)] = read_rows(args.payloads[i], "payloads[i]");
    call.quantize = read_quantize(args, call.payloads[0], call.payloads[1]);
    for (int32_t i = 0; i < args.payload_count; ++i) {
        const auto index = static_cast<size_t>(i);
        const bool quantized = call.quantize != kernels::quantize_none && i <= 1, scales = quantized && i == 1;
        moelink_rows &rows = call.payloads[index];
        if (rows.data == nullptr && args.num_tokens > 0 && !scales) rows.row_bytes = 0;
        if (rows.data != nullptr && rows.row_bytes == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "payloads[{}].row_bytes is 0", i);
        if (rows.row_bytes > config.payload_row_bytes[index]) {
            fail(MOELINK_ERR_TOO_SMALL, "payloads[{}].row_bytes is {} and the workspace holds {}; ensure or reinit with more", i, rows.row_bytes,
                 config.payload_row_bytes[index]);
        }
        if (args.outputs != nullptr && args.outputs[i].data != nullptr) {
            moelink_rows output = args.outputs[i];
            if (output.row_bytes == 0) output.row_bytes = rows.row_bytes;
            output = read_rows(output, "outputs[i]");
            if (output.row_bytes < rows.row_bytes) {
                fail(MOELINK_ERR_TOO_SMALL, "outputs[{}].row_bytes is {}, less than the payload's {}", i, output.row_bytes, rows.row_bytes);
            }
            if (scales && rows.dtype == MOELINK_DTYPE_F32 &&
                (reinterpret_cast<uint64_t>(output.data) | output.row_stride) % sizeof(float) != 0) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "outputs[1] has an address or stride that is no multiple of its scales' 4 bytes");
            }
            if (quantized) output.dtype = rows.dtype;
            call.outputs[index] = output;
        }
    }
    return call;
}

PrepareCall read_prepare(const moelink_prepare_args *given, const Config &config) {
    moelink_prepare_args defaults = MOELINK_PREPARE_ARGS_INIT;
    const moelink_prepare_args args = read_params(given, defaults, "args");
    check_slot(args.slot, config);
    check_flags(args.flags, 0);
    if (args.reserved != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "reserved is {}, must be 0", args.reserved);
    if (args.layout != MOELINK_LAYOUT_RANK_MAJOR && args.layout != MOELINK_LAYOUT_PACKED) {
        fail(MOELINK_ERR_UNSUPPORTED, "layout is {}; prepare has MOELINK_LAYOUT_RANK_MAJOR and MOELINK_LAYOUT_PACKED", args.layout);
    }
    check_routing(args, config, true);
    check_budget(args.sm_budget);
    if (args.num_statistics < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "num_statistics is {}", args.num_statistics);
    if (args.num_statistics > config.num_experts) {
        fail(MOELINK_ERR_TOO_SMALL, "num_statistics is {} and the workspace holds num_experts {}", args.num_statistics, config.num_experts);
    }
    if (args.num_statistics > 0 && args.statistics == nullptr) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "statistics is NULL and num_statistics {}", args.num_statistics);
    }
    check_address("statistics", args.statistics, sizeof(int64_t));
    return {args.slot, args.num_tokens, args.topk_ids_dtype, args.num_tokens_device, args.topk_ids, args.topk_weights,
            args.layout == MOELINK_LAYOUT_PACKED, args.invalid_id, args.statistics, args.num_statistics, args.sm_budget};
}

AlltoallvCall read_alltoallv(int32_t slot, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs, int32_t num_tokens,
                             const Config &config) {
    check_slot(slot, config);
    if (count < 0 || count > MOELINK_MAX_PAYLOADS) fail(MOELINK_ERR_INVALID_ARGUMENT, "count is {}, must be 0 to {}", count, int{MOELINK_MAX_PAYLOADS});
    if (count > 0 && (tensors == nullptr || outputs == nullptr)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL and count {}", tensors == nullptr ? "tensors" : "outputs", count);
    }
    AlltoallvCall call;
    call.slot = slot;
    call.num_tokens = num_tokens;
    call.count = count;
    for (int32_t i = 0; i < count; ++i) {
        moelink_rows &rows = call.tensors[static_cast<size_t>(i)];
        moelink_rows &output = call.outputs[static_cast<size_t>(i)];
        rows = read_rows(tensors[i], "tensors[i]");
        if (rows.data == nullptr && num_tokens > 0) rows.row_bytes = 0;
        if (rows.data != nullptr && rows.row_bytes == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors[{}].row_bytes is 0", i);
        if (rows.row_bytes > most_row_bytes) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors[{}].row_bytes is {}, must be at most {}", i, rows.row_bytes, most_row_bytes);
        if (rows.row_bytes == 0) continue;
        output = outputs[i];
        if (output.data == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "outputs[{}].data is NULL and the tensor is sent", i);
        if (output.row_bytes == 0) output.row_bytes = rows.row_bytes;
        output = read_rows(output, "outputs[i]");
        if (output.row_bytes < rows.row_bytes) {
            fail(MOELINK_ERR_TOO_SMALL, "outputs[{}].row_bytes is {}, less than the tensor's {}", i, output.row_bytes, rows.row_bytes);
        }
    }
    return call;
}

CombineCall read_combine(const moelink_combine_args *given, const Config &config) {
    moelink_combine_args defaults = MOELINK_COMBINE_ARGS_INIT;
    moelink_combine_args args = read_params(given, defaults, "args");
    check_slot(args.slot, config);
    check_flags(args.flags, MOELINK_COMBINE_F_SEND_ONLY);
    if (args.mode != MOELINK_COMBINE_SUM && args.mode != MOELINK_COMBINE_WEIGHTED) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "mode is {}, must be MOELINK_COMBINE_SUM or MOELINK_COMBINE_WEIGHTED", args.mode);
    }
    CombineCall call;
    call.slot = args.slot;
    if ((args.flags & MOELINK_COMBINE_F_SEND_ONLY) != 0) call.halves = kernels::half_send;
    call.weighted = args.mode == MOELINK_COMBINE_WEIGHTED;
    check_budget(args.sm_budget);
    if (args.reserved != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "reserved is {}, must be 0", args.reserved);
    if (args.input_rows < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "input_rows is {}", args.input_rows);
    call.input_rows = args.input_rows;
    call.sm_budget = args.sm_budget;
    call.input = read_rows(args.input, "input");
    call.output = read_rows(args.output, "output");
    uint64_t size = value_bytes(call.input.dtype);
    if (size == 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "input.dtype is {}, must be MOELINK_DTYPE_F32, _F16 or _BF16", call.input.dtype);
    }
    if (call.output.dtype != call.input.dtype) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "output.dtype is {} and input.dtype {}; they must be equal", call.output.dtype, call.input.dtype);
    }
    if (call.input.row_bytes == 0 || call.input.row_bytes % size != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "input.row_bytes is {}, must be a multiple of {} above 0", call.input.row_bytes, size);
    }
    if (call.output.row_bytes != call.input.row_bytes) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "output.row_bytes is {} and input.row_bytes {}; they must be equal", call.output.row_bytes,
             call.input.row_bytes);
    }
    for (const moelink_rows *rows : {&call.input, &call.output}) {
        if ((reinterpret_cast<uint64_t>(rows->data) | rows->row_stride) % size != 0) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "{} has an address or stride that is no multiple of its values' {} bytes",
                 rows == &call.input ? "input" : "output", size);
        }
    }
    if (call.input.row_bytes > config.combine_row_bytes) {
        fail(MOELINK_ERR_TOO_SMALL, "input.row_bytes is {} and the workspace holds combine_row_bytes {}; ensure or reinit with more",
             call.input.row_bytes, config.combine_row_bytes);
    }
    if (call.input.data == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "input.data is NULL");
    return call;
}

}  // namespace moelink
