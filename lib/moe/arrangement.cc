#include "moe/arrangement.hpp"

#include "moe/cursor.hpp"

#include <algorithm>
#include <atomic>

namespace moelink {

namespace {

constexpr uint32_t bit(int32_t layout) { return 1u << layout; }
constexpr uint32_t expert_layouts = bit(MOELINK_LAYOUT_EXPERT_MAJOR) | bit(MOELINK_LAYOUT_EXPERT_PADDED);
constexpr uint32_t other_layouts = expert_layouts | bit(MOELINK_LAYOUT_PACKED);

bool by_expert(int32_t layout) { return (bit(layout) & expert_layouts) != 0; }

// Four such products can be added.
uint64_t addable(std::initializer_list<uint64_t> factors) { return multiply(factors, UINT64_MAX / 4); }

// Sizes that follow from the config, on one rank.
struct Shape {
    Shape(const Config &config, int rank, int ranks)
        : rows_in(addable({static_cast<uint64_t>(ranks), static_cast<uint64_t>(config.max_tokens)})),
          top_k(static_cast<uint64_t>(config.top_k)), experts(static_cast<uint64_t>(config.experts_of(rank, ranks))) {
        if ((config.layouts & bit(MOELINK_LAYOUT_PACKED)) != 0) view_rows = rows_in;
        if ((config.layouts & bit(MOELINK_LAYOUT_EXPERT_MAJOR)) != 0) {
            view_rows = std::max(view_rows, addable({rows_in, top_k}) + addable({experts, static_cast<uint64_t>(config.alignment - 1)}));
        }
        if ((config.layouts & bit(MOELINK_LAYOUT_EXPERT_PADDED)) != 0) view_rows = std::max(view_rows, addable({experts, rows_in}));
        if (config.layout_rows > 0) view_rows = std::min(view_rows, static_cast<uint64_t>(config.layout_rows));
        if (view_rows > INT32_MAX) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "a layout of this config may have {} rows; offsets number at most {}: set layout_rows", view_rows,
                 INT32_MAX);
        }
        segments = std::clamp<uint64_t>((rows_in * top_k + 63) / 64, 1, kernels::max_segments);
        constexpr uint64_t most_counts = uint64_t{1} << 22;
        segments = std::clamp<uint64_t>(most_counts / std::max<uint64_t>(experts, 1), 1, segments);
    }

    uint64_t rows_in, top_k, experts;
    uint64_t view_rows = 0;
    uint64_t segments;
};

}  // namespace

Arrangement::Sizes Arrangement::sizes(const Config &config, int rank, int ranks) {
    Sizes result;
    if ((config.layouts & other_layouts) == 0) return result;
    const Shape shape(config, rank, ranks);
    const bool experts = (config.layouts & expert_layouts) != 0;
    uint64_t row = 3 * sizeof(int32_t) + sizeof(float) + shape.top_k * (sizeof(int32_t) + sizeof(float));
    if (experts) row += sizeof(int64_t);
    for (uint64_t bytes : config.payload_row_bytes) row += plane_stride(bytes);
    result.rows = static_cast<int64_t>(shape.view_rows);
    result.bytes = addable({shape.view_rows, row}) + addable({shape.rows_in, config.combine_row_bytes});
    if (experts) result.bytes += addable({shape.rows_in, shape.top_k, sizeof(int64_t)}) + addable({shape.segments, shape.experts, sizeof(int32_t)});
    return result;
}

Arrangement::Arrangement(const Device &device, const Config &config, const kernels::ExpertRanks &owners, int rank, int ranks, Faults &faults,
                         uint64_t generation)
    : device_(device), ranks_(ranks), capacity_(config.max_tokens), local_experts_(config.experts_of(rank, ranks)) {
    const Shape shape(config, rank, ranks);
    const bool other = (config.layouts & other_layouts) != 0, experts = (config.layouts & expert_layouts) != 0;
    tells_counts_ = other || (config.flags & MOELINK_MANAGER_F_COUNTS) != 0;
    layout_rows_ = static_cast<int64_t>(shape.view_rows);
    params_.rank = rank;
    params_.ranks = ranks;
    params_.capacity = capacity_;
    params_.top_k = config.top_k;
    params_.local_experts = local_experts_;
    params_.owners = owners;
    params_.segments = static_cast<int32_t>(shape.segments);
    params_.entry = {generation, faults.anchor(), faults.device_view()};
    if (tells_counts_) {
        host_counts_ = PinnedBuffer(device_, (static_cast<size_t>(kernels::host_counts_head + ranks) + shape.experts) * sizeof(int64_t));
        params_.host_counts = host_counts_.view<int64_t>();
    }
    if (!other) return;
    rank_offsets_ = Buffer(device_, (static_cast<size_t>(ranks) + 1) * sizeof(int32_t));
    row_sources_ = Buffer(device_, shape.view_rows * 3 * sizeof(int32_t));
    ids_ = Buffer(device_, shape.view_rows * shape.top_k * sizeof(int32_t));
    weights_ = Buffer(device_, shape.view_rows * shape.top_k * sizeof(float));
    scratch_ = Buffer(device_, shape.rows_in * config.combine_row_bytes);
    for (uint64_t bytes : config.payload_row_bytes) {
        strides_.push_back(plane_stride(bytes));
        views_.emplace_back(device_, shape.view_rows * strides_.back());
    }
    params_.rank_offsets = rank_offsets_.as<int32_t>();
    params_.row_sources = row_sources_.as<int32_t>();
    params_.out_ids = ids_.as<int32_t>();
    if (!experts) return;
    expert_counts_ = Buffer(device_, shape.experts * sizeof(int32_t));
    expert_offsets_ = Buffer(device_, (shape.experts + 1) * sizeof(int32_t));
    row_weights_ = Buffer(device_, shape.view_rows * sizeof(float));
    row_from_ = Buffer(device_, shape.view_rows * sizeof(int64_t));
    places_ = Buffer(device_, shape.rows_in * shape.top_k * sizeof(int64_t));
    segment_counts_ = Buffer(device_, shape.segments * shape.experts * sizeof(int32_t));
    finished_ = Buffer(device_, sizeof(uint32_t));
    params_.expert_counts = expert_counts_.as<int32_t>();
    params_.expert_offsets = expert_offsets_.as<int32_t>();
    params_.row_from = row_from_.as<int64_t>();
    params_.places = places_.as<int64_t>();
    params_.segment_counts = segment_counts_.as<int32_t>();
    params_.finished = finished_.as<uint32_t>();
}

bool Arrangement::works_on(const DispatchCall &call) const { return call.args.layout != MOELINK_LAYOUT_RANK_MAJOR || tells_counts_; }

// Rows of each output.
int64_t Arrangement::rows_of(int32_t layout, int64_t output_rows) const {
    if (layout == MOELINK_LAYOUT_RANK_MAJOR) return int64_t{ranks_} * capacity_;
    int64_t rows = output_rows > 0 ? std::min(output_rows, layout_rows_) : layout_rows_;
    if (layout == MOELINK_LAYOUT_PACKED) rows = std::min(rows, int64_t{ranks_} * capacity_);
    if (layout == MOELINK_LAYOUT_EXPERT_PADDED && local_experts_ > 0) {
        const int64_t each = std::min(rows / local_experts_, int64_t{ranks_} * capacity_);
        rows = each * local_experts_;
    }
    return rows;
}

Arranged Arrangement::prepare(const DispatchCall &call, const Received &received) {
    const int32_t layout = call.args.layout;
    kernels::ArrangeParams &params = params_;
    params.arrangement = static_cast<kernels::Arrangement>(layout);
    ++params.number;
    params.alignment = std::max(call.args.alignment, 1);
    params.invalid_id = call.args.invalid_id;
    params.zero_padding = layout == MOELINK_LAYOUT_EXPERT_MAJOR ? 1 : 0;
    params.ids = received.topk_ids;
    params.weights = call.weights ? received.topk_weights : nullptr;
    params.recv_counts = received.recv_counts;
    params.tokens = received.tokens;
    params.tokens_stride = received.tokens_stride;
    Arranged result;
    result.rows = params.rows = rows_of(layout, call.args.output_rows);
    params.payload_count = 0;
    if (layout == MOELINK_LAYOUT_RANK_MAJOR) {
        result.payloads = received.payloads;
        result.topk_ids = received.topk_ids;
        result.topk_weights = received.topk_weights;
        return result;
    }
    params.expert_rows = local_experts_ > 0 ? params.rows / local_experts_ : 0;
    params.out_weights = params.weights != nullptr ? weights_.as<float>() : nullptr;
    params.row_weights = params.weights != nullptr && by_expert(layout) ? row_weights_.as<float>() : nullptr;
    params.payload_count = call.payload_count;
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        const moelink_rows &from = received.payloads[p], &own = call.outputs[p];
        kernels::ArrangePayload &payload = params.payloads[p];
        payload = {};
        if (call.payloads[p].row_bytes == 0) continue;
        moelink_rows to = own;
        if (own.data == nullptr) to = {views_[p].as(), 0, strides_[p], from.dtype, 0};
        to.row_bytes = from.row_bytes;
        payload.source = static_cast<const unsigned char *>(from.data);
        payload.source_stride = from.row_stride;
        payload.target = static_cast<unsigned char *>(to.data);
        payload.target_stride = to.row_stride;
        payload.row_bytes = from.row_bytes;
        payload.width = kernels::access_width(reinterpret_cast<uint64_t>(from.data) | reinterpret_cast<uint64_t>(to.data) | from.row_stride |
                                              to.row_stride | from.row_bytes);
        result.payloads[p] = to;
    }
    result.row_sources = params.row_sources;
    if (layout == MOELINK_LAYOUT_PACKED) {
        result.topk_ids = params.out_ids;
        result.topk_weights = params.out_weights;
        result.rank_offsets = params.rank_offsets;
    } else {
        result.expert_counts = params.expert_counts;
        result.expert_offsets = params.expert_offsets;
        result.row_weights = params.row_weights;
    }
    return result;
}

kernels::Fault Arrangement::arrange(moelink_stream stream) const {
    if (!device_.on_cuda()) return kernels::host::arrange(params_);
    DeviceGuard guard(device_);
    check_launch(kernels::cuda::arrange(params_, stream), "arranging rows");
    return {};
}

void Arrangement::restore(CombineCall &call, moelink_stream stream) const {
    const moelink_rows input = call.input;
    const moelink_rows back = {scratch_.as(), input.row_bytes, input.row_bytes, input.dtype, 0};
    const uint64_t bits = reinterpret_cast<uint64_t>(input.data) | input.row_stride | input.row_bytes | reinterpret_cast<uint64_t>(back.data);
    DeviceGuard guard(device_);
    if (params_.arrangement == kernels::arrange_packed) {
        kernels::Unpack unpack{};
        unpack.ranks = ranks_;
        unpack.capacity = capacity_;
        unpack.recv_counts = params_.recv_counts;
        unpack.input = static_cast<const unsigned char *>(input.data);
        unpack.input_stride = input.row_stride;
        unpack.output = scratch_.as();
        unpack.row_bytes = input.row_bytes;
        unpack.width = kernels::access_width(bits);
        unpack.entry = params_.entry;
        if (device_.on_cuda()) {
            check_launch(kernels::cuda::unpack(unpack, stream), "unpacking rows");
        } else {
            kernels::host::unpack(unpack);
        }
    } else {
        kernels::GatherExperts gather{};
        gather.ranks = ranks_;
        gather.capacity = capacity_;
        gather.top_k = params_.top_k;
        gather.value_type = value_type_of(input.dtype);
        gather.weighted = call.weighted ? 1 : 0;
        gather.whole = bits % 16 == 0 ? 1 : 0;
        gather.recv_counts = params_.recv_counts;
        gather.places = params_.places;
        gather.weights = params_.weights;
        gather.input = static_cast<const unsigned char *>(input.data);
        gather.input_stride = input.row_stride;
        gather.output = scratch_.as();
        gather.row_bytes = input.row_bytes;
        gather.entry = params_.entry;
        if (device_.on_cuda()) {
            check_launch(kernels::cuda::gather_experts(gather, stream), "adding experts' rows");
        } else {
            kernels::host::gather_experts(gather);
        }
        call.weighted = false;
    }
    call.input = back;
}

bool Arrangement::told() const {
    if (!tells_counts_) {
        fail(MOELINK_ERR_INVALID_STATE, "the config has no other layout than rank-major and no MOELINK_MANAGER_F_COUNTS, so dispatches tell no counts");
    }
    if (params_.number == 0) fail(MOELINK_ERR_INVALID_STATE, "the slot has had no dispatch");
    return std::atomic_ref<int64_t>(*host_counts_.as<int64_t>()).load(std::memory_order_acquire) == params_.number;
}

void Arrangement::counts(int64_t *rank_rows, int64_t *expert_rows, int64_t *rows) const {
    const auto *words = host_counts_.as<const int64_t>();
    const int64_t *of_ranks = words + kernels::host_counts_head;
    *rows = words[1];
    if (rank_rows != nullptr) std::copy_n(of_ranks, ranks_, rank_rows);
    const bool experts = params_.arrangement >= kernels::arrange_expert_major;
    if (expert_rows != nullptr && experts) std::copy_n(of_ranks + ranks_, local_experts_, expert_rows);
}

void count_loads(const Device &device, const kernels::ExpertRanks &owners, const kernels::Entry &entry, int32_t top_k,
                 const moelink_dispatch_args &args, moelink_stream stream) {
    kernels::CountLoads params{};
    params.ids = args.topk_ids;
    params.ids_bytes = args.topk_ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    params.tokens = args.num_tokens;
    params.tokens_device = args.num_tokens_device;
    params.top_k = top_k;
    params.owners = owners;
    params.counts = args.load_counts;
    params.entry = entry;
    if (device.on_cuda()) {
        DeviceGuard guard(device);
        check_launch(kernels::cuda::count_loads(params, stream), "counting loads");
    } else {
        kernels::host::count_loads(params);
    }
}

}  // namespace moelink
