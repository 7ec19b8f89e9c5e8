#include "eplb/device_map.hpp"

#include "base/params.hpp"
#include "moe/backend.hpp"

#include <vector>

namespace moelink::eplb {

namespace {

// Where the parts begin, in int32 elements.
struct Parts {
    uint64_t slots, offsets, segment_counts, totals, shares, end;  // phy2log begins at 0

    explicit Parts(const Shape &shape) {
        const auto experts = static_cast<uint64_t>(shape.experts);
        slots = shape.all_slots();
        offsets = slots + shape.all_slots();
        segment_counts = offsets + static_cast<uint64_t>(shape.layers) * (experts + 1);
        totals = segment_counts + uint64_t{kernels::max_route_segments} * experts;
        shares = totals + experts;
        end = shares + static_cast<uint64_t>(shape.slots);
    }
};

}  // namespace

static_assert(MOELINK_EPLB_MAX_RANKS <= kernels::max_eplb_ranks);

struct DeviceMap::Tables {
    std::vector<int32_t> slots;    // [layers, slots]
    std::vector<int32_t> offsets;  // [layers, experts + 1]
};

uint64_t DeviceMap::bytes(const Shape &shape) { return Parts(shape).end * sizeof(int32_t); }

DeviceMap::DeviceMap(const Group &group, const Shape &shape, const int32_t *phy2log)
    : shape_(shape), device_(group), ordinal_(group.on_cuda() ? group.ordinal() : -1) {
    const Tables tables = make_tables(0, shape.layers, phy2log);
    memory_ = Buffer(device_, bytes(shape));
    const Parts parts(shape_);
    device_.write(part(0), phy2log, shape.all_slots() * sizeof(int32_t));
    device_.write(part(parts.slots), tables.slots.data(), tables.slots.size() * sizeof(int32_t));
    device_.write(part(parts.offsets), tables.offsets.data(), tables.offsets.size() * sizeof(int32_t));
    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::load_kernels(), "loading the kernels");
    }
}

kernels::CopyTable DeviceMap::table() const {
    const Parts parts(shape_);
    return {shape_.experts, shape_.slots, shape_.ranks, 0, part(0), part(parts.offsets), part(parts.slots)};
}

DeviceMap::Tables DeviceMap::make_tables(int32_t first_layer, int32_t layers, const int32_t *phy2log) const {
    Shape one = shape_;
    one.layers = 1;
    const auto experts = static_cast<size_t>(shape_.experts);
    const auto slots = static_cast<size_t>(shape_.slots);
    Tables tables{std::vector<int32_t>(static_cast<size_t>(layers) * slots, 0),
                  std::vector<int32_t>(static_cast<size_t>(layers) * (experts + 1), 0)};
    std::vector<int32_t> next(experts);
    for (int32_t layer = 0; layer < layers; ++layer) {
        const int32_t *map = phy2log + static_cast<size_t>(layer) * slots;
        int32_t *offsets = tables.offsets.data() + static_cast<size_t>(layer) * (experts + 1);
        check_map(one, map, "phy2log", first_layer + layer);
        for (size_t slot = 0; slot < slots; ++slot) {
            if (map[slot] >= 0) ++offsets[map[slot] + 1];
        }
        for (size_t expert = 0; expert < experts; ++expert) {
            if (offsets[expert + 1] == 0) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "phy2log has no slot for expert {} in layer {}", expert, first_layer + layer);
            }
            offsets[expert + 1] += offsets[expert];
            next[expert] = offsets[expert];
        }
        for (size_t slot = 0; slot < slots; ++slot) {
            if (map[slot] < 0) continue;
            int32_t &place = next[static_cast<size_t>(map[slot])];
            tables.slots[static_cast<size_t>(layer) * slots + static_cast<size_t>(place++)] = static_cast<int32_t>(slot);
        }
    }
    return tables;
}

void DeviceMap::update(int32_t first_layer, int32_t layers, const int32_t *phy2log, moelink_stream stream) {
    if (first_layer < 0 || layers < 1 || layers > shape_.layers - first_layer) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "layers {} .. {} are not all of the map's 0 .. {}", first_layer,
             int64_t{first_layer} + layers - 1, shape_.layers - 1);
    }
    if (phy2log == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "phy2log is NULL");
    if (device_.capturing(stream)) fail(MOELINK_ERR_INVALID_STATE, "the stream is being captured; a map is updated outside of graphs");
    const Tables tables = make_tables(first_layer, layers, phy2log);
    const Parts parts(shape_);
    const uint64_t first_slot = static_cast<uint64_t>(first_layer) * static_cast<uint64_t>(shape_.slots);
    const uint64_t first_offset = static_cast<uint64_t>(first_layer) * (static_cast<uint64_t>(shape_.experts) + 1);
    device_.write_async(part(first_slot), phy2log, tables.slots.size() * sizeof(int32_t), stream);
    device_.write_async(part(parts.slots + first_slot), tables.slots.data(), tables.slots.size() * sizeof(int32_t), stream);
    device_.write_async(part(parts.offsets + first_offset), tables.offsets.data(), tables.offsets.size() * sizeof(int32_t), stream);
}

void DeviceMap::route(const moelink_eplb_route_args *given, moelink_stream stream) {
    const moelink_eplb_route_args defaults = MOELINK_EPLB_ROUTE_ARGS_INIT;
    const moelink_eplb_route_args args = read_params(given, defaults, "args");
    if (args.layer < 0 || args.layer >= shape_.layers) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "layer is {}; the map has {} (0 to {})", args.layer, shape_.layers, shape_.layers - 1);
    }
    if (args.policy < MOELINK_EPLB_ROUND_ROBIN || args.policy > MOELINK_EPLB_CAPACITY) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "policy is {}, must be MOELINK_EPLB_ROUND_ROBIN, _HASHED or _CAPACITY", args.policy);
    }
    if (args.num_tokens < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "num_tokens is {}", args.num_tokens);
    if (args.top_k < 1) fail(MOELINK_ERR_INVALID_ARGUMENT, "top_k is {}, must be 1 or more", args.top_k);
    if (int64_t{args.num_tokens} * args.top_k > INT32_MAX) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} tokens with {} ids each are 2^31 ids or more; make several calls", args.num_tokens,
             args.top_k);
    }
    if (args.ids_dtype != MOELINK_DTYPE_I32 && args.ids_dtype != MOELINK_DTYPE_I64) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "ids_dtype is {}, must be MOELINK_DTYPE_I32 or MOELINK_DTYPE_I64", args.ids_dtype);
    }
    if (args.num_tokens == 0) return;
    if (args.logical_ids == nullptr || args.physical_ids == nullptr) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL with {} tokens", args.logical_ids == nullptr ? "logical_ids" : "physical_ids",
             args.num_tokens);
    }
    const Parts parts(shape_);
    kernels::RouteParams params{};
    params.table = table().layer(args.layer);
    static_assert(MOELINK_EPLB_ROUND_ROBIN == int{kernels::route_round_robin} && MOELINK_EPLB_HASHED == int{kernels::route_hashed} &&
                  MOELINK_EPLB_CAPACITY == int{kernels::route_capacity});
    params.policy = args.policy;
    params.tokens = args.num_tokens;
    params.tokens_device = args.num_tokens_device;
    params.top_k = args.top_k;
    params.ids_bytes = args.ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    params.ids = args.logical_ids;
    params.out_ids = args.physical_ids;
    params.seed = args.seed;
    params.room = args.rank_room;
    params.slot_counts = args.slot_counts;
    params.segment_counts = part(parts.segment_counts);
    params.totals = part(parts.totals);
    params.shares = part(parts.shares);
    if (!device_.on_cuda()) return kernels::host::route(params);
    DeviceGuard guard(device_);
    check_launch(kernels::cuda::route(params, stream), "choosing copies");
}

}  // namespace moelink::eplb
