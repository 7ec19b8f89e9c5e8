// The gathering manager over NCCL: its collectives and small kernels around them.
#include "moe/gather_nccl.hpp"

#include "group/agreement.hpp"
#include "moe/cursor.hpp"
#include "moe/nccl_comm.hpp"

#include <algorithm>

namespace moelink {

namespace {

// Bytes of one slot's parts.
struct GatherLayout {
    GatherLayout(const Config &config, int ranks) {
        const bool deterministic = (config.flags & MOELINK_MANAGER_F_DETERMINISTIC) != 0;
        const auto r = static_cast<uint64_t>(ranks);
        const auto capacity = static_cast<uint64_t>(config.max_tokens);
        const auto top_k = static_cast<uint64_t>(config.top_k);
        for (uint64_t bytes : config.payload_row_bytes) {
            planes.push_back(multiply({r, capacity, bytes}));
        }
        ids = multiply({r, capacity, top_k, 4});
        local = multiply({r, capacity});
        outputs = multiply({r, capacity, config.combine_row_bytes});
        sums = deterministic ? outputs : outputs / r;
    }
    std::vector<uint64_t> planes;  // staging: a rank's part of each
    uint64_t ids = 0;
    uint64_t local = 0;
    uint64_t outputs = 0;
    uint64_t sums = 0;  // ours, or every rank's rows of it
};

}  // namespace

moelink_manager_sizes gather_nccl_sizes(const Group &group, const Config &config) {
    const GatherLayout layout(config, group.size());
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    const auto slots = static_cast<uint64_t>(config.slots);
    const auto ranks = static_cast<uint64_t>(group.size());
    sizes.slots_per_rank = config.max_tokens;
    for (uint64_t plane : layout.planes) sizes.dispatch_bytes += plane + plane / ranks;
    sizes.dispatch_bytes = multiply({sizes.dispatch_bytes + 2 * layout.ids + 2 * layout.ids / ranks, slots});
    sizes.control_bytes = multiply({layout.local + 4 * ranks + 4, slots});
    sizes.combine_bytes = multiply({layout.outputs + layout.sums, slots});
    sizes.workspace_bytes = sizes.dispatch_bytes + sizes.control_bytes + sizes.combine_bytes;
    return sizes;
}

namespace {

int nccl_type(int32_t dtype) {
    switch (dtype) {
        case MOELINK_DTYPE_F32: return nccl_float32;
        case MOELINK_DTYPE_F16: return nccl_float16;
        default: return nccl_bfloat16;
    }
}

struct GatherSlot {
    std::vector<Buffer> planes;
    Buffer ids, weights;
    Buffer local;   // uint8 [ranks, capacity]: the row has an expert here
    Buffer counts;  // int32 [ranks]
    Buffer tokens;  // int32 [1]: ours
    Buffer ids_staging, weights_staging;  // dense rows of ours
    std::vector<Buffer> staging;          // of each payload
    Buffer outputs, sums;                 // of combine
    std::vector<int64_t> rank_tokens;  // of the last dispatch; empty: padded
    bool routed = true;                // the last dispatch had ids
};

class GatherNccl : public Backend {
public:
    explicit GatherNccl(const BackendParams &params)
        : group_(params.group), device_(params.device), config_(params.config), owners_(params.owners), slots_(static_cast<size_t>(config_.slots)) {
        step(*group_, group_->deadline(), [&] {
            allocate();
            DeviceGuard guard(device_);
            check_launch(kernels::cuda::load_kernels(), "loading the kernels");
        });
        comm_ = make_nccl_comm(*group_, device_, true);
    }

    ~GatherNccl() override { close(); }

    moelink_manager_sizes sizes() const override { return gather_nccl_sizes(*group_, config_); }
    Received dispatch(const DispatchCall &call, moelink_stream stream) override;
    void combine(const CombineCall &call, moelink_stream stream) override;
    void abandon(int32_t, const Deadline &) override {}

private:
    void close() noexcept {
        if (comm_ == nullptr) return;
        try {
            DeviceGuard guard(device_);
            nccl().comm_destroy(std::exchange(comm_, nullptr));
        } catch (const Error &) {
        }
    }

    void allocate() {
        const GatherLayout layout(config_, group_->size());
        const auto ranks = static_cast<uint64_t>(group_->size());
        for (GatherSlot &slot : slots_) {
            for (uint64_t plane : layout.planes) {
                slot.planes.emplace_back(device_, plane);
                slot.staging.emplace_back(device_, plane / ranks);
            }
            slot.ids = Buffer(device_, layout.ids);
            slot.weights = Buffer(device_, layout.ids);
            slot.local = Buffer(device_, layout.local);
            slot.counts = Buffer(device_, ranks * 4);
            slot.tokens = Buffer(device_, 4);
            slot.ids_staging = Buffer(device_, layout.ids / ranks);
            slot.weights_staging = Buffer(device_, layout.ids / ranks);
            slot.outputs = Buffer(device_, layout.outputs);
            slot.sums = Buffer(device_, layout.sums);
        }
    }

    // rows [tokens] of a caller, strided, into dense rows.
    void pack(const moelink_rows &rows, void *target, int64_t count, const int32_t *count_device, moelink_stream stream) const {
        kernels::cuda::CopyRows copy{};
        copy.source = static_cast<const unsigned char *>(rows.data);
        copy.source_stride = rows.row_stride;
        copy.target = static_cast<unsigned char *>(target);
        copy.target_stride = rows.row_bytes;
        copy.row_bytes = rows.row_bytes;
        copy.rows = count;
        copy.rows_device = count_device;
        if (count > 0) check_launch(kernels::cuda::copy_rows(copy, stream), "copying rows");
    }

    // Dense rows of every rank to every rank: [ranks, capacity, row_bytes]; as many rows of each as it has, or all padded. In a group.
    void gather(const void *mine, void *all, uint64_t row_bytes, const std::vector<int64_t> &rank_tokens, moelink_stream stream) const {
        const uint64_t block = static_cast<uint64_t>(config_.max_tokens) * row_bytes;
        if (rank_tokens.empty()) {
            check_nccl(nccl().all_gather(mine, all, block, nccl_uint8, comm_, stream), "ncclAllGather", comm_);
            return;
        }
        for (int root = 0; root < group_->size(); ++root) {
            const uint64_t bytes = static_cast<uint64_t>(rank_tokens[static_cast<size_t>(root)]) * row_bytes;
            unsigned char *target = static_cast<unsigned char *>(all) + static_cast<uint64_t>(root) * block;
            if (bytes > 0) check_nccl(nccl().broadcast(mine, target, bytes, nccl_uint8, root, comm_, stream), "ncclBroadcast", comm_);
        }
    }

    // A caller's rows as they are gathered: in place where they are dense and none is padded, else copied into staging.
    const void *dense(const DispatchCall &call, size_t payload, const GatherSlot &slot, bool padded, moelink_stream stream) const {
        const moelink_rows &rows = call.payloads[payload];
        if (!padded && rows.row_stride == rows.row_bytes) return rows.data;
        pack(rows, slot.staging[payload].as(), call.args.num_tokens, slot.tokens.as<int32_t>(), stream);
        return slot.staging[payload].as();
    }

    void copy_out(const moelink_rows &payload, const moelink_rows &output, const GatherSlot &slot, size_t p, moelink_stream stream) const {
        kernels::cuda::CopyRows copy{};
        copy.source = slot.planes[p].as();
        copy.source_stride = copy.row_bytes = payload.row_bytes;
        copy.target = static_cast<unsigned char *>(output.data);
        copy.target_stride = output.row_stride;
        copy.rows = int64_t{group_->size()} * config_.max_tokens;
        copy.group_counts = slot.counts.as<int32_t>();
        copy.group_rows = config_.max_tokens;
        check_launch(kernels::cuda::copy_rows(copy, stream), "copying rows");
    }

    void read_ids(const DispatchCall &call, const GatherSlot &slot, moelink_stream stream) const;
    void mask_ids(const DispatchCall &call, const GatherSlot &slot, moelink_stream stream) const;
    void add_exchanged(const CombineCall &call, const GatherSlot &slot, moelink_stream stream) const;

    std::vector<int64_t> read_rank_tokens(const moelink_dispatch_args &args) const;

    Ref<Group> group_;
    Device device_;
    Config config_;
    kernels::ExpertRanks owners_;
    NcclComm comm_ = nullptr;
    std::vector<GatherSlot> slots_;
};

std::vector<int64_t> GatherNccl::read_rank_tokens(const moelink_dispatch_args &args) const {
    if (args.rank_tokens == nullptr) return {};
    std::vector<int64_t> tokens(args.rank_tokens, args.rank_tokens + group_->size());
    for (size_t rank = 0; rank < tokens.size(); ++rank) {
        if (tokens[rank] < 0 || tokens[rank] > config_.max_tokens) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens[{}] is {}; the workspace holds max_tokens {}", rank, tokens[rank], config_.max_tokens);
        }
    }
    const int64_t mine = tokens[static_cast<size_t>(group_->rank())];
    if (mine != args.num_tokens) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens[{}] is {} and num_tokens {}; they must be equal", group_->rank(), mine, args.num_tokens);
    }
    return tokens;
}

void GatherNccl::read_ids(const DispatchCall &call, const GatherSlot &slot, moelink_stream stream) const {
    const moelink_dispatch_args &args = call.args;
    kernels::cuda::GatherIds ids{};
    ids.ids = args.topk_ids;
    ids.ids_bytes = args.topk_ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    ids.tokens = args.num_tokens;
    ids.tokens_device = args.num_tokens_device;
    ids.padded = config_.max_tokens;
    ids.top_k = config_.top_k;
    ids.out_ids = slot.ids_staging.as<int32_t>();
    ids.out_tokens = slot.tokens.as<int32_t>();
    check_launch(kernels::cuda::gather_ids(ids, stream), "gathering ids");
    if (args.topk_weights == nullptr) return;
    const uint64_t row = static_cast<uint64_t>(config_.top_k) * sizeof(float);
    const moelink_rows weights{const_cast<float *>(args.topk_weights), row, row, MOELINK_DTYPE_F32, 0};
    pack(weights, slot.weights_staging.as(), args.num_tokens, ids.out_tokens, stream);
}

void GatherNccl::mask_ids(const DispatchCall &call, const GatherSlot &slot, moelink_stream stream) const {
    kernels::cuda::MaskIds mask{};
    mask.rank = group_->rank();
    mask.ranks = group_->size();
    mask.owners = owners_;
    mask.top_k = config_.top_k;
    mask.capacity = config_.max_tokens;
    mask.invalid_id = call.args.invalid_id;
    mask.tokens = slot.counts.as<int32_t>();
    mask.ids = slot.ids.as<int32_t>();
    mask.local = slot.local.as<uint8_t>();
    check_launch(kernels::cuda::mask_ids(mask, stream), "masking ids");
}

// Everything of a round is one group of NCCL's calls.
Received GatherNccl::dispatch(const DispatchCall &call, moelink_stream stream) {
    const moelink_dispatch_args &args = call.args;
    if (call.quantize != kernels::quantize_none) {
        fail(MOELINK_ERR_UNSUPPORTED, "quantize is not there over NCCL; pass FP8 rows and their scales as payloads, or use one-sided");
    }
    GatherSlot &slot = slots_[static_cast<size_t>(args.slot)];
    const uint64_t routing_row = static_cast<uint64_t>(config_.top_k) * sizeof(int32_t);
    std::vector<int64_t> rank_tokens = read_rank_tokens(args);
    DeviceGuard guard(device_);

    if (!call.cached) read_ids(call, slot, stream);
    std::array<const void *, MOELINK_MAX_PAYLOADS> sources{};
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        if (call.payloads[p].row_bytes > 0) sources[p] = dense(call, p, slot, rank_tokens.empty(), stream);
    }
    NcclCalls calls(comm_);
    if (!call.cached) {
        check_nccl(nccl().all_gather(slot.tokens.as(), slot.counts.as(), sizeof(int32_t), nccl_uint8, comm_, stream), "ncclAllGather", comm_);
        if (call.routed) {
            // Weights always travel: a rank without tokens may pass NULL and cannot know whether the others do.
            gather(slot.ids_staging.as(), slot.ids.as(), routing_row, rank_tokens, stream);
            gather(slot.weights_staging.as(), slot.weights.as(), routing_row, rank_tokens, stream);
        }
    }
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        if (call.payloads[p].row_bytes > 0) gather(sources[p], slot.planes[p].as(), call.payloads[p].row_bytes, rank_tokens, stream);
    }
    calls.end();

    Received received;
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        const moelink_rows &payload = call.payloads[p], &output = call.outputs[p];
        if (payload.row_bytes == 0) continue;
        received.payloads[p] = dense_rows(slot.planes[p].as(), payload);
        if (output.data == nullptr) continue;
        copy_out(payload, output, slot, p, stream);
        received.payloads[p] = output;
        received.payloads[p].row_bytes = payload.row_bytes;
    }
    if (call.routed && !call.cached) mask_ids(call, slot, stream);
    received.topk_ids = slot.ids.as<int32_t>();
    received.topk_weights = slot.weights.as<float>();
    received.recv_counts = slot.counts.as<int32_t>();
    slot.rank_tokens = std::move(rank_tokens);
    slot.routed = call.routed;
    return received;
}

// Each rank gets the others' rows for its tokens and adds them itself.
void GatherNccl::add_exchanged(const CombineCall &call, const GatherSlot &slot, moelink_stream stream) const {
    const uint64_t row_bytes = call.input.row_bytes, block = static_cast<uint64_t>(config_.max_tokens) * row_bytes;
    auto rows_of = [&](int rank) {
        return slot.rank_tokens.empty() ? static_cast<uint64_t>(config_.max_tokens) : static_cast<uint64_t>(slot.rank_tokens[static_cast<size_t>(rank)]);
    };
    const uint64_t mine = rows_of(group_->rank()) * row_bytes;
    NcclCalls calls(comm_);
    for (int peer = 0; peer < group_->size(); ++peer) {
        const uint64_t bytes = rows_of(peer) * row_bytes, at = static_cast<uint64_t>(peer) * block;
        if (bytes > 0) check_nccl(nccl().send(slot.outputs.as() + at, bytes, nccl_uint8, peer, comm_, stream), "ncclSend", comm_);
        if (mine > 0) check_nccl(nccl().recv(slot.sums.as() + at, mine, nccl_uint8, peer, comm_, stream), "ncclRecv", comm_);
    }
    calls.end();
    kernels::cuda::AddPlanes add{};
    add.source = slot.sums.as();
    add.plane_bytes = block;
    add.planes = group_->size();
    add.target = static_cast<unsigned char *>(call.output.data);
    add.target_stride = call.output.row_stride;
    add.row_bytes = row_bytes;
    add.value_type = value_type_of(call.input.dtype);
    add.rows = call.num_tokens;
    add.rows_device = slot.tokens.as<int32_t>();
    if (call.num_tokens > 0) check_launch(kernels::cuda::add_planes(add, stream), "adding rows");
}

void GatherNccl::combine(const CombineCall &call, moelink_stream stream) {
    if (call.weighted) fail(MOELINK_ERR_UNSUPPORTED, "MOELINK_COMBINE_WEIGHTED is not there over NCCL, which sums by itself; use SUM or one-sided");
    const GatherSlot &slot = slots_[static_cast<size_t>(call.slot)];
    const uint64_t row_bytes = call.input.row_bytes;
    const uint64_t values = row_bytes / (call.input.dtype == MOELINK_DTYPE_F32 ? 4 : 2);
    const int type = nccl_type(call.input.dtype);
    DeviceGuard guard(device_);

    // Rows without an expert here must not count, whatever the caller left in them.
    kernels::cuda::CopyRows mask{};
    mask.source = static_cast<const unsigned char *>(call.input.data);
    mask.source_stride = call.input.row_stride;
    mask.target = slot.outputs.as();
    mask.target_stride = mask.row_bytes = row_bytes;
    mask.rows = int64_t{group_->size()} * config_.max_tokens;
    if (slot.routed) mask.keep = slot.local.as<uint8_t>();
    check_launch(kernels::cuda::copy_rows(mask, stream), "masking rows");

    if ((config_.flags & MOELINK_MANAGER_F_DETERMINISTIC) != 0) return add_exchanged(call, slot, stream);
    if (slot.rank_tokens.empty()) {
        check_nccl(nccl().reduce_scatter(slot.outputs.as(), slot.sums.as(), static_cast<uint64_t>(config_.max_tokens) * values, type, nccl_sum, comm_, stream),
                   "ncclReduceScatter", comm_);
    } else {
        NcclCalls calls(comm_);
        for (int root = 0; root < group_->size(); ++root) {
            const auto rows = static_cast<uint64_t>(slot.rank_tokens[static_cast<size_t>(root)]);
            const unsigned char *from = slot.outputs.as() + static_cast<uint64_t>(root) * static_cast<uint64_t>(config_.max_tokens) * row_bytes;
            if (rows > 0) check_nccl(nccl().reduce(from, slot.sums.as(), rows * values, type, nccl_sum, root, comm_, stream), "ncclReduce", comm_);
        }
        calls.end();
    }
    kernels::cuda::CopyRows copy{};
    copy.source = slot.sums.as();
    copy.source_stride = copy.row_bytes = row_bytes;
    copy.target = static_cast<unsigned char *>(call.output.data);
    copy.target_stride = call.output.row_stride;
    copy.rows = call.num_tokens;
    copy.rows_device = slot.tokens.as<int32_t>();
    if (call.num_tokens > 0) check_launch(kernels::cuda::copy_rows(copy, stream), "copying rows");
}

}  // namespace

std::unique_ptr<Backend> make_gather_nccl(const BackendParams &params) { return std::make_unique<GatherNccl>(params); }

}  // namespace moelink
