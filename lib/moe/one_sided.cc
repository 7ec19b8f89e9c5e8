// Push dispatch and push combine through symmetric memory; also the gathering manager, which is the same dispatch with every rank as a
// destination.
#include "moe/one_sided.hpp"

#include "group/agreement.hpp"
#include "moe/fault.hpp"
#include "moe/layout.hpp"
#include "moe/shape.hpp"

#include <algorithm>

namespace moelink {

namespace {

uint64_t bits(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

OneSided::OneSided(const BackendParams &params, bool to_all)
    : group_(params.group), device_(params.device), config_(params.config), to_all_(to_all),
      layout_(make_layout(config_, group_->size(), group_->on_cuda(), to_all)) {
    moelink_memory_params memory = MOELINK_MEMORY_PARAMS_INIT;
    memory.provider = config_.provider;
    memory.bytes = layout_.bytes;
    memory_ = Memory::create(group_, memory);

    step(*group_, group_->deadline(), [&] { prepare(params); });
    if (device_.on_cuda()) share_ = GpuShare(*group_, device_, config_, group_->deadline());
}

void OneSided::prepare(const BackendParams &params) {
    peers_ = PeerSlots(params, *memory_, layout_.slot.bytes);
    for (size_t slot = 0; slot < static_cast<size_t>(config_.slots); ++slot) {
        kernels::Workspace &ws = workspaces_.emplace_back(peers_.workspace(params, slot));
        ws.max_distinct = layout_.max_distinct;
        ws.dispatch_packet_rows = layout_.dispatch_packet_rows;
        ws.combine_packet_rows = layout_.combine_packet_rows;
        ws.dispatch_packet_bytes = layout_.dispatch_packet_bytes;
        ws.combine_packet_bytes = layout_.combine_packet_bytes;
        ws.combine_packet_vectors = layout_.combine_packet_vectors;
        ws.layout = layout_.slot;
        reset(slot);
    }
    if (device_.on_cuda()) check_launch(load_kernels(), "loading the kernels");
}

kernels::cuda::Result OneSided::load_kernels() const {
    DeviceGuard guard(device_);
    return kernels::cuda::load_kernels();
}

// Control words to their start: epochs 0, no rows, and every row of topk_ids still to be marked.
void OneSided::reset(size_t slot) {
    const kernels::SlotLayout &layout = layout_.slot;
    unsigned char *mine = workspaces_[slot].mine;
    device_.clear(mine + layout.lines, layout.distinct - layout.lines);
    device_.clear(mine + layout.dispatch_packets, static_cast<uint64_t>(group_->size()) * static_cast<uint64_t>(layout_.dispatch_packet_rows) *
                                                      layout_.dispatch_packet_bytes);
    device_.clear(mine + layout.combine_packets, static_cast<uint64_t>(layout_.combine_packet_rows) *
                                                     static_cast<uint64_t>(layout_.max_distinct) * layout_.combine_packet_bytes);
    std::vector<kernels::Filled> filled(static_cast<size_t>(group_->size()), kernels::Filled{config_.max_tokens, 0});
    device_.write(mine + layout.filled, filled.data(), filled.size() * sizeof(filled[0]));
}

moelink_manager_sizes OneSided::sizes() const {
    moelink_manager_sizes sizes = sizes_from(layout_, config_);
    sizes.workspace_bytes = memory_->bytes();
    return sizes;
}

Received OneSided::dispatch(const DispatchCall &call, moelink_stream stream) {
    const moelink_dispatch_args &args = call.args;
    if (!call.routed && !to_all_) fail(MOELINK_ERR_INVALID_ARGUMENT, "MOELINK_DISPATCH_F_NO_ROUTING is for ALLGATHER_REDUCESCATTER, whose rows go to all ranks");
    const kernels::Workspace &ws = workspaces_[static_cast<size_t>(args.slot)];
    kernels::DispatchParams params;
    params.workspace = ws;
    params.tokens = args.num_tokens;
    params.ids_bytes = args.topk_ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    params.tokens_device = args.num_tokens_device;
    params.ids = args.topk_ids;
    params.weights = args.topk_weights;
    if (call.cached) {
        params.ids_bytes = 4;
        params.tokens_device = &reinterpret_cast<const kernels::SlotState *>(ws.mine + ws.layout.state)->tokens;
        params.ids = ws.mine + ws.layout.own_ids;
        params.weights = call.weights ? reinterpret_cast<const float *>(ws.mine + ws.layout.own_weights) : nullptr;
    }
    params.invalid_id = args.invalid_id;
    params.payload_count = call.payload_count;
    params.quantize = call.quantize;
    params.spread = !call.routed ? kernels::spread_no_routing : to_all_ ? kernels::spread_all : kernels::spread_owners;
    params.halves = call.halves;
    params.row_tiles = 1;
    params.whole_ids = kernels::access_width(bits(params.ids) | static_cast<uint64_t>(config_.top_k * params.ids_bytes)) == 16 ? 1 : 0;

    Received received;
    Shape shape;
    shape.add(static_cast<uint64_t>(call.payload_count)).add(call.quantize).add(params.spread);
    bool copies_out = false, whole_vectors = true;
    for (size_t i = 0; i < static_cast<size_t>(call.payload_count); ++i) {
        const moelink_rows &rows = call.payloads[i];
        const moelink_rows &output = call.outputs[i];
        kernels::Payload &payload = params.payloads[i];
        payload.source = static_cast<const unsigned char *>(rows.data);
        payload.source_stride = rows.row_stride;
        payload.row_bytes = rows.row_bytes;
        payload.plane = ws.layout.planes[i];
        payload.plane_stride = layout_.plane_strides[i];
        payload.output = static_cast<unsigned char *>(output.data);
        payload.output_stride = output.row_stride;
        payload.width = kernels::access_width(bits(rows.data) | rows.row_stride | rows.row_bytes | payload.plane_stride);
        payload.output_width = kernels::access_width(bits(output.data) | output.row_stride);
        payload.packet_beside = layout_.packet_beside[i];
        payload.packet_vectors = layout_.packet_vectors[i];
        const bool scales = i == 1 && call.quantize != kernels::quantize_none;  // they travel with what they scale
        payload.tiles = scales ? 0 : static_cast<uint32_t>(kernels::packet_tiles(rows.row_bytes));
        params.row_tiles += payload.tiles;
        shape.add(rows.row_bytes);
        if (rows.row_bytes == 0) continue;
        whole_vectors = whole_vectors && (scales || payload.width == 16);
        if (i == 0 && call.quantize != kernels::quantize_none && device_.on_cuda() && payload.width != 16) {
            fail(MOELINK_ERR_INVALID_ARGUMENT,
                 "quantize needs multiples of 16 bytes on CUDA; payloads[0] has address {} and stride {}, and the config's payload_row_bytes[0] is {}",
                 rows.data, rows.row_stride, config_.payload_row_bytes[0]);
        }
        copies_out = copies_out || output.data != nullptr;
        received.payloads[i] = output;
        if (output.data == nullptr) received.payloads[i] = {ws.mine + payload.plane, 0, payload.plane_stride, rows.dtype, 0};
        received.payloads[i].row_bytes = rows.row_bytes;
    }
    params.shape = shape.value();
    params.packets = whole_vectors ? 1 : 0;
    received.topk_ids = reinterpret_cast<int32_t *>(ws.mine + ws.layout.ids);
    received.topk_weights = reinterpret_cast<float *>(ws.mine + ws.layout.weights);
    received.recv_counts = reinterpret_cast<const int32_t *>(ws.mine + ws.layout.recv_counts);
    received.tokens = &reinterpret_cast<const kernels::RowOrigin *>(ws.mine + ws.layout.origins)->token;
    received.tokens_stride = sizeof(kernels::RowOrigin) / sizeof(int32_t);

    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::dispatch(params, share_.launch(args.num_tokens, args.sm_budget, stream)), "dispatch");
    } else {
        check_fault(kernels::host::dispatch(params, watch_of(*group_)), *group_, config_.timeout_ns);
    }
    return received;
}

// Combine's input in the slot itself must be rows where dispatch put them. Anywhere else a row for one owner may lie in the part of
// another source, whose next dispatch overwrites it as soon as that source has its own rows back.
void OneSided::check_input(const kernels::Workspace &ws, const moelink_rows &input) const {
    const uint64_t at = bits(input.data) - bits(ws.mine);
    if (bits(input.data) < bits(ws.mine) || at >= ws.layout.bytes) return;
    for (size_t i = 0; i < layout_.plane_strides.size(); ++i) {
        const uint64_t plane = ws.layout.planes[i], stride = layout_.plane_strides[i];
        if (input.row_stride != stride || at < plane || at - plane >= stride) continue;
        if (input.row_bytes <= stride - (at - plane)) return;
    }
    fail(MOELINK_ERR_INVALID_ARGUMENT,
         "input lies in the workspace, but its {} bytes a row at a stride of {} are not within the rows of a dispatched view", input.row_bytes,
         input.row_stride);
}

void OneSided::combine(const CombineCall &call, moelink_stream stream) {
    const kernels::Workspace &ws = workspaces_[static_cast<size_t>(call.slot)];
    check_input(ws, call.input);
    kernels::CombineParams params{};
    params.halves = call.halves;
    params.workspace = ws;
    params.input = static_cast<const unsigned char *>(call.input.data);
    params.input_stride = call.input.row_stride;
    params.output = static_cast<unsigned char *>(call.output.data);
    params.output_stride = call.output.row_stride;
    params.row_bytes = call.input.row_bytes;
    params.value_type = value_type_of(call.input.dtype);
    params.weighted = call.weighted ? 1 : 0;
    params.push_width = kernels::access_width(bits(params.input) | params.input_stride | params.row_bytes);
    params.reduce_width = std::min(params.push_width, kernels::access_width(bits(params.output) | params.output_stride));
    params.shape = Shape().add(params.row_bytes).add(static_cast<uint64_t>(params.value_type)).value();
    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::combine(params, share_.launch(call.num_tokens, call.sm_budget, stream)), "combine");
    } else {
        check_fault(kernels::host::combine(params, watch_of(*group_)), *group_, config_.timeout_ns);
    }
}

void OneSided::abandon(int32_t slot, const Deadline &deadline) {
    reset(static_cast<size_t>(slot));
    group_->barrier(deadline);
}

namespace {

moelink_manager_sizes one_sided_query(const Group &group, const Config &config) {
    check_workspace(group, config);
    return sizes_from(make_layout(config, group.size(), group.on_cuda(), false), config);
}

std::unique_ptr<Backend> one_sided_make(const BackendParams &params) {
    check_workspace(*params.group, params.config);
    return std::make_unique<OneSided>(params, false);
}

}  // namespace

const ManagerKind one_sided_kind = {MOELINK_MANAGER_ONE_SIDED, "one-sided",
                                    "push dispatch and push combine through symmetric memory of one host or NVLink domain",
                                    &device_available, &one_sided_query, &one_sided_make};

}  // namespace moelink
