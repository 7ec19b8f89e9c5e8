// Bounded FIFOs between ranks: prepare, alltoallv and its way back. docs/two_sided.md has the protocol.
#include "moe/two_sided.hpp"

#include "base/log.hpp"
#include "group/agreement.hpp"
#include "moe/fault.hpp"
#include "moe/shape.hpp"

#include <algorithm>

namespace moelink {

namespace {

uint64_t bits(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

TwoSided::TwoSided(const BackendParams &params)
    : group_(params.group), device_(params.device), config_(params.config),
      plan_(plan_fifos(config_, group_->size(), group_->on_cuda())) {
    moelink_memory_params memory = MOELINK_MEMORY_PARAMS_INIT;
    memory.provider = config_.provider;
    memory.bytes = static_cast<uint64_t>(config_.slots) * plan_.fifo.bytes;
    memory_ = Memory::create(group_, memory);
    step(*group_, group_->deadline(), [&] { allocate(params); });
    if (!device_.on_cuda()) return;
    share_ = GpuShare(*group_, device_, config_, group_->deadline());
    log(MOELINK_LOG_DEBUG, "rank {}: {} channels of {} tiles", group_->rank(), plan_.fifo.channels, plan_.fifo.depth);
}

void TwoSided::allocate(const BackendParams &params) {
    peers_ = PeerSlots(params, *memory_, plan_.fifo.bytes);
    slots_.resize(static_cast<size_t>(config_.slots));
    for (Slot &slot : slots_) {  // the largest first, and nothing written before all are there
        slot.views = Buffer(device_, plan_.view_bytes);
        slot.tables = Buffer(device_, plan_.table_bytes);
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
        Slot &slot = slots_[i];
        slot.fifos.fifo = plan_.fifo;
        slot.fifos.tables = plan_.tables(slot.tables.as());
        slot.fifos.workspace = peers_.workspace(params, i);
        slot.fifos.workspace.max_distinct = plan_.max_distinct;
        reset(slot);
    }
    if (!device_.on_cuda()) return;
    DeviceGuard guard(device_);
    check_launch(kernels::cuda::load_kernels(), "loading the kernels");
}

// FIFOs empty, epochs and credits at 0, and every row of topk_ids still to be marked.
void TwoSided::reset(Slot &slot) {
    device_.clear(slot.fifos.workspace.mine, plan_.fifo.bytes);
    device_.clear(slot.tables.as(), plan_.table_bytes);
    std::vector<kernels::Filled> filled(static_cast<size_t>(group_->size()), kernels::Filled{config_.max_tokens, 0});
    device_.write(slot.fifos.tables.filled, filled.data(), filled.size() * sizeof(filled[0]));
}

moelink_manager_sizes TwoSided::sizes() const {
    moelink_manager_sizes sizes = sizes_from(plan_, config_);
    sizes.workspace_bytes += memory_->bytes() - static_cast<uint64_t>(config_.slots) * plan_.fifo.bytes;
    return sizes;
}

kernels::FifoCall TwoSided::routing(const PrepareCall &call) {
    Slot &slot = slots_[static_cast<size_t>(call.slot)];
    slot.fifos.packed = call.packed ? 1 : 0;
    kernels::FifoCall result{};
    result.fifos = slot.fifos;
    result.prepares = 1;
    result.tokens = call.num_tokens;
    result.ids_bytes = call.topk_ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    result.tokens_device = call.num_tokens_device;
    result.ids = call.topk_ids;
    result.weights = call.topk_weights;
    result.invalid_id = call.invalid_id;
    result.whole_ids = kernels::access_width(bits(call.topk_ids) | static_cast<uint64_t>(config_.top_k * result.ids_bytes)) == 16 ? 1 : 0;
    result.statistics = call.statistics;
    result.statistics_count = call.num_statistics;
    return result;
}

void TwoSided::add_tensors(kernels::FifoCall &call, const moelink_rows *tensors, const moelink_rows *outputs, int32_t count,
                           kernels::QuantizeForm quantize) const {
    Shape shape;
    shape.add(call.prepares).add(call.repeats).add(call.fifos.packed).add(static_cast<uint64_t>(call.statistics_count)).add(quantize);
    shape.add(static_cast<uint64_t>(count));
    call.quantize = quantize;
    for (int32_t i = 0; i < count; ++i) {
        const moelink_rows &rows = tensors[i], &output = outputs[i];
        shape.add(rows.row_bytes);
        if (rows.row_bytes == 0) continue;
        kernels::FifoTensor &tensor = call.tensors[call.tensor_count++];
        tensor.source = static_cast<const unsigned char *>(rows.data);
        tensor.source_stride = rows.row_stride;
        tensor.row_bytes = rows.row_bytes;
        tensor.output = static_cast<unsigned char *>(output.data);
        tensor.output_stride = output.row_stride;
        tensor.source_width = kernels::access_width(bits(rows.data) | rows.row_stride);
        tensor.output_width = kernels::access_width(bits(output.data) | output.row_stride);
        const bool scales = quantize != kernels::quantize_none && i == 1;
        tensor.tiles = scales ? 0 : static_cast<uint32_t>(kernels::packet_tiles(rows.row_bytes));
        call.row_tiles += tensor.tiles;
        if (i == 0 && quantize != kernels::quantize_none && device_.on_cuda() && tensor.source_width != 16) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "quantize needs multiples of 16 bytes on CUDA; payloads[0] has address {} and stride {}", rows.data,
                 rows.row_stride);
        }
    }
    call.shape = shape.value();
}

void TwoSided::run(const kernels::FifoCall &call, int32_t tokens, int32_t sm_budget, moelink_stream stream) {
    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::alltoallv(call, share_.launch(tokens, sm_budget, stream)), "alltoallv");
    } else {
        check_fault(kernels::host::alltoallv(call, watch_of(*group_)), *group_, config_.timeout_ns);
    }
}

Received TwoSided::dispatch(const DispatchCall &call, moelink_stream stream) {
    const moelink_dispatch_args &args = call.args;
    if (!call.routed) fail(MOELINK_ERR_INVALID_ARGUMENT, "MOELINK_DISPATCH_F_NO_ROUTING is for ALLGATHER_REDUCESCATTER, whose rows go to all ranks");
    const Slot &slot = slots_[static_cast<size_t>(args.slot)];
    Received received;
    for (size_t i = 0; i < static_cast<size_t>(call.payload_count); ++i) {
        const moelink_rows &rows = call.payloads[i];
        if (rows.row_bytes == 0) continue;
        received.payloads[i] = call.outputs[i];
        if (call.outputs[i].data == nullptr) {
            if (plan_.view_strides.empty()) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "outputs[{}].data is NULL and the config has MOELINK_MANAGER_F_NO_VIEWS", i);
            }
            received.payloads[i] = {slot.views.as() + plan_.view_offsets[i], 0, plan_.view_strides[i], rows.dtype, 0};
        }
        received.payloads[i].row_bytes = rows.row_bytes;
    }
    kernels::FifoCall params{};
    if (call.cached) {
        params.fifos = slot.fifos;
        params.repeats = 1;
    } else {
        params = routing({args.slot, args.num_tokens, args.topk_ids_dtype, args.num_tokens_device, args.topk_ids, args.topk_weights, false,
                          args.invalid_id, nullptr, 0, args.sm_budget});
    }
    add_tensors(params, call.payloads.data(), received.payloads.data(), call.payload_count, call.quantize);
    run(params, args.num_tokens, args.sm_budget, stream);
    const kernels::FifoTables &tables = slot.fifos.tables;
    received.topk_ids = tables.ids;
    received.topk_weights = tables.weights;
    received.recv_counts = tables.recv_counts;
    received.tokens = tables.origins;
    return received;
}

moelink_prepared TwoSided::prepare(const PrepareCall &call, moelink_stream stream) {
    kernels::FifoCall params = routing(call);
    add_tensors(params, nullptr, nullptr, 0, kernels::quantize_none);
    run(params, call.num_tokens, call.sm_budget, stream);
    const kernels::FifoTables &tables = slots_[static_cast<size_t>(call.slot)].fifos.tables;
    moelink_prepared result = MOELINK_PREPARED_INIT;
    result.ranks = group_->size();
    result.slots_per_rank = config_.max_tokens;
    result.row_capacity = int64_t{group_->size()} * config_.max_tokens;
    result.send_capacity = int64_t{config_.max_tokens} * plan_.max_distinct;
    result.max_distinct = plan_.max_distinct;
    result.num_statistics = call.num_statistics;
    result.topk_ids = tables.ids;
    if (call.topk_weights != nullptr || call.num_tokens == 0) result.topk_weights = tables.weights;
    result.recv_counts = tables.recv_counts;
    result.recv_offsets = tables.recv_offsets;
    result.send_counts = tables.send_counts;
    result.send_offsets = tables.send_offsets;
    result.send_tokens = tables.send_tokens;
    result.back_rows = tables.back_rows;
    if (call.num_statistics > 0) result.statistics = tables.statistics;
    return result;
}

void TwoSided::alltoallv(const AlltoallvCall &call, moelink_stream stream) {
    kernels::FifoCall params{};
    params.fifos = slots_[static_cast<size_t>(call.slot)].fifos;
    add_tensors(params, call.tensors.data(), call.outputs.data(), call.count, kernels::quantize_none);
    run(params, call.num_tokens, 0, stream);
}

void TwoSided::combine(const CombineCall &call, moelink_stream stream) {
    kernels::FifoCombine params{};
    params.fifos = slots_[static_cast<size_t>(call.slot)].fifos;
    params.input = static_cast<const unsigned char *>(call.input.data);
    params.input_stride = call.input.row_stride;
    params.output = static_cast<unsigned char *>(call.output.data);
    params.output_stride = call.output.row_stride;
    params.row_bytes = call.input.row_bytes;
    params.value_type = value_type_of(call.input.dtype);
    params.weighted = call.weighted ? 1 : 0;
    params.input_width = kernels::access_width(bits(params.input) | params.input_stride);
    params.output_width = kernels::access_width(bits(params.output) | params.output_stride);
    params.shape = Shape().add(params.row_bytes).add(static_cast<uint64_t>(params.value_type)).add(call.ends ? 1 : 0).value();
    params.ends = call.ends ? 1 : 0;
    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::alltoallv_combine(params, share_.launch(call.num_tokens, call.sm_budget, stream)), "combine");
    } else {
        check_fault(kernels::host::alltoallv_combine(params, watch_of(*group_)), *group_, config_.timeout_ns);
    }
}

void TwoSided::abandon(int32_t slot, const Deadline &deadline) {
    reset(slots_[static_cast<size_t>(slot)]);
    group_->barrier(deadline);
}

void TwoSided::reset_all(const Deadline &deadline) {
    for (Slot &slot : slots_) reset(slot);
    group_->barrier(deadline);
}

namespace {

moelink_manager_sizes two_sided_query(const Group &group, const Config &config) {
    check_workspace(group, config);
    return sizes_from(plan_fifos(config, group.size(), group.on_cuda()), config);
}

std::unique_ptr<Backend> two_sided_make(const BackendParams &params) {
    check_workspace(*params.group, params.config);
    return std::make_unique<TwoSided>(params);
}

}  // namespace

const ManagerKind two_sided_kind = {MOELINK_MANAGER_TWO_SIDED, "two-sided",
                                    "prepare and alltoallv through bounded FIFOs in symmetric memory of one host or NVLink domain",
                                    &device_available, &two_sided_query, &two_sided_make};

}  // namespace moelink
