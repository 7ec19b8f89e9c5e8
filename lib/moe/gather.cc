// The gathering manager: all ranks receive all tokens, outputs come back by reduce-scatter. On the host it is the one-sided
// dispatch to every rank over the group's shared memory; on CUDA it is NCCL's collectives and small kernels around them.
#include "group/agreement.hpp"
#include "moe/nccl_comm.hpp"
#include "moe/one_sided.hpp"

#include <algorithm>

namespace moelink {

#if MOELINK_CUDA

namespace {

uint64_t multiply(std::initializer_list<uint64_t> factors) {
    uint64_t product = 1;
    for (uint64_t factor : factors) {
        if (__builtin_mul_overflow(product, factor, &product)) {
            fail(MOELINK_ERR_OUT_OF_MEMORY, "the workspace of this config does not fit 64-bit sizes");
        }
    }
    return product;
}

// Bytes of one slot's parts.
struct GatherLayout {
    GatherLayout(const Config &config, int ranks) {
        const auto r = static_cast<uint64_t>(ranks);
        const auto capacity = static_cast<uint64_t>(config.max_tokens);
        const auto top_k = static_cast<uint64_t>(config.top_k);
        for (uint64_t bytes : config.payload_row_bytes) {
            planes.push_back(multiply({r, capacity, bytes}));
            payload_staging = std::max(payload_staging, multiply({capacity, bytes}));
        }
        ids = multiply({r, capacity, top_k, 4});
        local = multiply({r, capacity});
        outputs = multiply({r, capacity, config.combine_row_bytes});
    }
    std::vector<uint64_t> planes;
    uint64_t payload_staging = 0;
    uint64_t ids = 0;
    uint64_t local = 0;
    uint64_t outputs = 0;
};

moelink_manager_sizes nccl_sizes(const Group &group, const Config &config) {
    const GatherLayout layout(config, group.size());
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    const auto slots = static_cast<uint64_t>(config.slots);
    const auto ranks = static_cast<uint64_t>(group.size());
    sizes.slots_per_rank = config.max_tokens;
    for (uint64_t plane : layout.planes) sizes.dispatch_bytes += plane;
    sizes.dispatch_bytes = multiply({sizes.dispatch_bytes + 2 * layout.ids + layout.payload_staging + 2 * layout.ids / ranks, slots});
    sizes.control_bytes = multiply({layout.local + 4 * ranks + 4, slots});
    sizes.combine_bytes = multiply({layout.outputs + layout.outputs / ranks, slots});
    sizes.workspace_bytes = sizes.dispatch_bytes + sizes.control_bytes + sizes.combine_bytes;
    return sizes;
}

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
    Buffer ids_staging, weights_staging, payload_staging;  // dense rows of ours
    Buffer outputs, sums;                                  // of combine
    std::vector<int64_t> rank_tokens;  // of the last dispatch; empty: padded
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

    moelink_manager_sizes sizes() const override { return nccl_sizes(*group_, config_); }
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
            for (uint64_t plane : layout.planes) slot.planes.emplace_back(device_, plane);
            slot.ids = Buffer(device_, layout.ids);
            slot.weights = Buffer(device_, layout.ids);
            slot.local = Buffer(device_, layout.local);
            slot.counts = Buffer(device_, ranks * 4);
            slot.tokens = Buffer(device_, 4);
            slot.ids_staging = Buffer(device_, layout.ids / ranks);
            slot.weights_staging = Buffer(device_, layout.ids / ranks);
            slot.payload_staging = Buffer(device_, layout.payload_staging);
            slot.outputs = Buffer(device_, layout.outputs);
            slot.sums = Buffer(device_, layout.outputs / ranks);
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

    // Dense rows of every rank to every rank: [ranks, capacity, row_bytes]; as many rows of each as it has, or all padded.
    void gather(const void *mine, void *all, uint64_t row_bytes, const std::vector<int64_t> &rank_tokens, moelink_stream stream) const {
        const uint64_t block = static_cast<uint64_t>(config_.max_tokens) * row_bytes;
        if (rank_tokens.empty()) {
            check_nccl(nccl().all_gather(mine, all, block, nccl_uint8, comm_, stream), "ncclAllGather", comm_);
            return;
        }
        NcclCalls calls(comm_);
        for (int root = 0; root < group_->size(); ++root) {
            const uint64_t bytes = static_cast<uint64_t>(rank_tokens[static_cast<size_t>(root)]) * row_bytes;
            unsigned char *target = static_cast<unsigned char *>(all) + static_cast<uint64_t>(root) * block;
            if (bytes > 0) check_nccl(nccl().broadcast(mine, target, bytes, nccl_uint8, root, comm_, stream), "ncclBroadcast", comm_);
        }
        calls.end();
    }

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

Received GatherNccl::dispatch(const DispatchCall &call, moelink_stream stream) {
    const moelink_dispatch_args &args = call.args;
    if (call.quantize != kernels::quantize_none) {
        fail(MOELINK_ERR_UNSUPPORTED, "quantize is not there over NCCL; pass FP8 rows and their scales as payloads, or use one-sided");
    }
    GatherSlot &slot = slots_[static_cast<size_t>(args.slot)];
    const auto top_k = static_cast<uint64_t>(config_.top_k);
    std::vector<int64_t> rank_tokens = read_rank_tokens(args);
    DeviceGuard guard(device_);

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
    gather(ids.out_ids, slot.ids.as(), top_k * 4, rank_tokens, stream);
    check_nccl(nccl().all_gather(ids.out_tokens, slot.counts.as(), 4, nccl_uint8, comm_, stream), "ncclAllGather", comm_);

    // Weights always travel: a rank without tokens may pass NULL and cannot know whether the others do.
    Received received;
    if (args.topk_weights != nullptr) {
        const moelink_rows weights{const_cast<float *>(args.topk_weights), top_k * 4, top_k * 4, MOELINK_DTYPE_F32, 0};
        pack(weights, slot.weights_staging.as(), args.num_tokens, ids.out_tokens, stream);
    }
    gather(slot.weights_staging.as(), slot.weights.as(), top_k * 4, rank_tokens, stream);
    if (args.topk_weights != nullptr || args.num_tokens == 0) received.topk_weights = slot.weights.as<float>();
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        const moelink_rows &payload = call.payloads[p];
        if (payload.row_bytes == 0) continue;
        pack(payload, slot.payload_staging.as(), args.num_tokens, ids.out_tokens, stream);
        gather(slot.payload_staging.as(), slot.planes[p].as(), payload.row_bytes, rank_tokens, stream);
        received.payloads[p] = dense_rows(slot.planes[p].as(), payload);
        if (call.outputs[p].data == nullptr) continue;
        kernels::cuda::CopyRows copy{};
        copy.source = slot.planes[p].as();
        copy.source_stride = copy.row_bytes = payload.row_bytes;
        copy.target = static_cast<unsigned char *>(call.outputs[p].data);
        copy.target_stride = call.outputs[p].row_stride;
        copy.rows = int64_t{group_->size()} * config_.max_tokens;
        copy.group_counts = slot.counts.as<int32_t>();
        copy.group_rows = config_.max_tokens;
        check_launch(kernels::cuda::copy_rows(copy, stream), "copying rows");
        received.payloads[p] = call.outputs[p];
        received.payloads[p].row_bytes = payload.row_bytes;
    }
    kernels::cuda::MaskIds mask{};
    mask.rank = group_->rank();
    mask.ranks = group_->size();
    mask.owners = owners_;
    mask.top_k = config_.top_k;
    mask.capacity = config_.max_tokens;
    mask.invalid_id = args.invalid_id;
    mask.tokens = slot.counts.as<int32_t>();
    mask.ids = slot.ids.as<int32_t>();
    mask.local = slot.local.as<uint8_t>();
    check_launch(kernels::cuda::mask_ids(mask, stream), "masking ids");
    received.topk_ids = mask.ids;
    received.recv_counts = mask.tokens;
    slot.rank_tokens = std::move(rank_tokens);
    return received;
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
    mask.keep = slot.local.as<uint8_t>();
    check_launch(kernels::cuda::copy_rows(mask, stream), "masking rows");

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

#endif

namespace {

moelink_status gather_available(int32_t device, std::string *why) {
    moelink_status status = device_available(device, why);
#if MOELINK_CUDA
    if (status == MOELINK_OK && device == MOELINK_DEVICE_CUDA) return nccl_available(why);
#endif
    return status;
}

moelink_manager_sizes gather_query(const Group &group, const Config &config) {
#if MOELINK_CUDA
    if (group.on_cuda()) return nccl_sizes(group, config);
#endif
    check_workspace(group, config);
    return sizes_from(make_layout(config, group.size(), group.on_cuda()), config);
}

std::unique_ptr<Backend> gather_make(const BackendParams &params) {
#if MOELINK_CUDA
    if (params.group->on_cuda()) return std::make_unique<GatherNccl>(params);
#endif
    return std::make_unique<OneSided>(params, true);
}

}  // namespace

const ManagerKind allgather_reducescatter_kind = {
    MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, "allgather-reducescatter",
    "every rank receives every token; NCCL on CUDA (one rank a GPU), shared memory on the host", &gather_available, &gather_query, &gather_make};

}  // namespace moelink
