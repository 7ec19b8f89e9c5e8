#include "stress_chapter.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "rank.hpp"

namespace perf {

namespace {

constexpr int graphs_a_chapter = 3;
constexpr int pairs_a_graph = 24;
constexpr int replays_a_stretch = 8;
constexpr int eager_pairs = 8;
constexpr uint64_t room = 32;  // bytes beside a row for offsets and strides

}  // namespace

int draw(Random &random, int count) {
    return std::min(count - 1, static_cast<int>(random.next() * count));
}

StressGeometry::StressGeometry(uint64_t seed, int ranks, int most) {
    Random random(seed);
    topk = draw_of(random, {1, 2, 3, 6, 8, 8, 22});
    experts = draw_of(random, {ranks, 3 * ranks + 1, 8 * ranks, 64 * ranks + 5});
    payload_count = 1 + draw(random, stress_payloads);
    slots = draw_of(random, {1, 1, 2, 3});
    sm_budget = draw_of(random, {0, 0, 0, 1, 5});
    most_tokens = draw_of(random, {most, most, std::max(1, most / 4), std::min(most, 64)});
    const bool odd = draw(random, 4) == 0;
    for (uint64_t &bytes : row_bytes) {
        bytes = odd && draw(random, 2) == 0 ? draw_of<uint64_t>(random, {1, 2, 6, 13, 100, 516, 1001, 3074})
                                            : draw_of<uint64_t>(random, {16, 48, 112, 512, 1536, 1552, 2048, 3072, 4096, 7168});
    }
    combine_bytes = draw(random, 4) == 0 ? draw_of<uint64_t>(random, {4, 100, 516, 3076})
                                         : draw_of<uint64_t>(random, {16, 512, 1536, 1552, 2048, 4096, 7168});
}

std::string StressGeometry::describe() const {
    std::string rows;
    for (int p = 0; p < payload_count; ++p) {
        rows += fmt::format("{}{}", p > 0 ? "+" : "", row_bytes[p]);
    }
    return fmt::format("{} of {} experts, {} bytes there, {} back, {} tokens, {} slots, {}", topk, experts, rows, combine_bytes, most_tokens, slots,
                       sm_budget > 0 ? fmt::format("{} multiprocessors", sm_budget) : "all multiprocessors");
}

// One slot's memory, and the pair in flight there.
struct StressChapter::Buffers {
    int32_t number = 0;
    uint64_t issued = 0;  // pairs so far
    bool dispatched = false;
    bool late = false;  // received rows are compared only when combine is due
    uint64_t *sequence = nullptr;
    int32_t *tokens = nullptr;
    void *ids = nullptr;
    float *weights = nullptr;
    void *sources[stress_payloads] = {};
    void *received[stress_payloads] = {};
    void *input = nullptr;
    void *output = nullptr;
    StressRound round{};
    moelink_rows combine_input{};
    moelink_rows combine_output{};
    // Chosen for the pair.
    moelink_rows payloads[stress_payloads] = {};
    moelink_rows outputs[stress_payloads] = {};
    int in_place = -1;  // payload in whose view combine's input lies
    bool host_tokens = false;
};

struct StressChapter::Graph {
    int number;
    std::vector<int> pairs;  // by slot
};

StressChapter::StressChapter(const Session &session, const StressOptions &options, const StressSteps &steps, uint64_t seed)
    : session_(session), options_(options), steps_(steps), seed_(seed), geometry_(seed, session.ranks(), options.tokens) {
    moelink_manager *manager = nullptr;
    must(moelink_manager_create(session.group(), manager_of(options.manager).kind, nullptr, &manager), "moelink_manager_create");
    manager_.reset(manager);
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.flags = manager_of(options.manager).flags;
    config.max_tokens = geometry_.most_tokens;
    config.top_k = geometry_.topk;
    config.num_experts = geometry_.experts;
    config.payload_count = geometry_.payload_count;
    config.payload_row_bytes = geometry_.row_bytes;
    config.combine_row_bytes = geometry_.combine_bytes;
    config.slots = geometry_.slots;
    config.sm_budget = geometry_.sm_budget;
    config.timeout_ns = static_cast<uint64_t>(options.timeout * 1e9);
    config.provider = provider_of(options.provider);
    config.fifo_bytes = seed % 3 == 0 ? 100000 : 0;
    must(moelink_manager_init(manager, &config), "moelink_manager_init");
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    must(moelink_manager_sizes_of(manager, &sizes), "moelink_manager_sizes_of");
    slots_per_rank_ = sizes.slots_per_rank;

    Device &device = session.device();
    const auto zeroed = [&](uint64_t bytes) {
        void *data = device.alloc(bytes);
        device.fill(data, 0, bytes);
        return data;
    };
    result_ = static_cast<StressResult *>(zeroed(sizeof(StressResult)));
    slots_.resize(static_cast<size_t>(geometry_.slots));
    const auto tokens = static_cast<uint64_t>(geometry_.most_tokens), topk = static_cast<uint64_t>(geometry_.topk);
    const uint64_t rows = static_cast<uint64_t>(slots_per_rank_) * static_cast<uint64_t>(session.ranks());
    int32_t number = 0;
    for (Buffers &slot : slots_) {
        slot.number = number++;
        slot.sequence = static_cast<uint64_t *>(zeroed(2 * sizeof(uint64_t)));
        slot.tokens = static_cast<int32_t *>(zeroed(sizeof(int32_t)));
        slot.ids = zeroed(tokens * topk * sizeof(int64_t));
        slot.weights = static_cast<float *>(zeroed(tokens * topk * sizeof(float)));
        for (int p = 0; p < geometry_.payload_count; ++p) {
            slot.sources[p] = zeroed((tokens + 1) * (geometry_.row_bytes[p] + room));
            slot.received[p] = zeroed((rows + 1) * (geometry_.row_bytes[p] + room));
        }
        slot.input = zeroed((rows + 1) * (geometry_.combine_bytes + room));
        slot.output = zeroed((tokens + 1) * (geometry_.combine_bytes + room));
    }
    device.sync();
    if (device.graphs()) {
        make_graphs();
    }
    session.barrier();
}

StressChapter::~StressChapter() {
    try {
        session_.device().free_all();
    } catch (const std::exception &) {
        // The device's error was reported where it first came up.
    }
}

void StressChapter::make_graphs() {
    for (int i = 0; i < graphs_a_chapter; ++i) {
        session_.device().begin_capture();
        std::vector<int> pairs = play(mix(seed_, 0x67726170u + static_cast<uint64_t>(i)), pairs_a_graph, true);
        graphs_.push_back({session_.device().end_capture(), std::move(pairs)});
    }
}

int StressChapter::stretch() {
    const uint64_t number = mix(seed_, 0x73740000u + stretches_++);
    Random common(number);
    int pairs = 0;
    for (int replay = 0; replay < (graphs_.empty() ? 0 : replays_a_stretch); ++replay) {
        const Graph &graph = graphs_[static_cast<size_t>(draw(common, static_cast<int>(graphs_.size())))];
        session_.device().launch(graph.number);
        for (size_t slot = 0; slot < slots_.size(); ++slot) {
            slots_[slot].issued += static_cast<uint64_t>(graph.pairs[slot]);
            pairs += graph.pairs[slot];
        }
    }
    play(mix(number, 1), eager_pairs, false);
    return pairs + eager_pairs;
}

// Dispatches and combines of all slots in a random order that is the same on every rank. Returns the pairs of each slot.
std::vector<int> StressChapter::play(uint64_t number, int pairs, bool capturing) {
    Random common(number);
    Random own(mix(number, 0x6f776eu + static_cast<uint64_t>(session_.rank())));
    std::vector<int> done(slots_.size());
    int started = 0, ended = 0;
    while (ended < pairs) {
        Buffers &slot = slots_[static_cast<size_t>(draw(common, static_cast<int>(slots_.size())))];
        const auto delay_us = static_cast<int64_t>(options_.delay_us * own.next());
        if (!capturing && delay_us > 0 && draw(own, 8) == 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
        }
        if (slot.dispatched) {
            combine(slot);
            slot.issued += capturing ? 0 : 1;
            ++done[static_cast<size_t>(slot.number)];
            ++ended;
        } else if (started < pairs) {
            dispatch(slot, common, own, capturing);
            ++started;
        }
    }
    return done;
}

// Rows in a buffer, moved off its start and apart.
moelink_rows StressChapter::place(Random &random, void *buffer, uint64_t row_bytes, std::initializer_list<int> offsets) const {
    const int offset = draw_of(random, offsets), apart = draw_of(random, offsets);
    return {static_cast<char *>(buffer) + offset, row_bytes, row_bytes + static_cast<uint64_t>(apart), MOELINK_DTYPE_U8, 0};
}

void StressChapter::choose(Buffers &slot, Random &common, Random &own) {
    StressRound &round = slot.round;
    round = {};
    round.seed = seed_;
    round.sequence = slot.sequence;
    round.result = result_;
    round.slot = slot.number;
    round.rank = session_.rank();
    round.ranks = session_.ranks();
    round.topk = geometry_.topk;
    round.experts = geometry_.experts;
    round.most_tokens = geometry_.most_tokens;
    round.most_delay_ns = static_cast<uint32_t>(options_.delay_us * 1e3);
    round.ids = slot.ids;
    round.tokens = slot.tokens;
    round.slots_per_rank = slots_per_rank_;
    if (session_.rank() == session_.ranks() - 1 && !options_.corrupt.empty()) {
        round.damage = options_.corrupt == "dispatch" ? StressDamage::dispatch : StressDamage::combine;
    }

    // What ranks share.
    round.invalid_id = draw_of(common, {-1, -1, -1, geometry_.experts + 5});
    const bool weights = draw(common, 2) == 0;
    round.weighted = weights && draw(common, 2) == 0 ? 1 : 0;
    round.weights = weights ? slot.weights : nullptr;
    round.dtype = draw_of<int32_t>(common, {MOELINK_DTYPE_BF16, MOELINK_DTYPE_F16, MOELINK_DTYPE_F32});
    round.combine_bytes = draw(common, 4) == 0 ? std::max<uint64_t>(4, geometry_.combine_bytes / 8 * 4) : geometry_.combine_bytes;
    round.payload_count = draw(common, 4) == 0 ? 1 + draw(common, geometry_.payload_count) : geometry_.payload_count;
    for (int p = 0; p < round.payload_count; ++p) {
        const uint64_t most = geometry_.row_bytes[p];
        round.payloads[p].row_bytes = draw(common, 4) == 0 ? std::max<uint64_t>(1, most / 2) : most;
    }

    // What each decides for itself. Rows off their 16 bytes travel another way than others.
    const bool aligned = draw(own, 4) != 0;
    const std::initializer_list<int> any{0, 0, 16, 4, 3}, whole{0, 0, 16}, values{0, 0, 16, 4};
    round.ids_bytes = draw_of(own, {4, 8});
    slot.host_tokens = draw(own, 2) == 0;
    slot.late = draw(own, 2) == 0;
    slot.in_place = -1;
    const bool copies = draw(own, 2) == 0, in_place = draw(own, 2) == 0;
    for (int p = 0; p < round.payload_count; ++p) {
        const uint64_t bytes = round.payloads[p].row_bytes;
        slot.payloads[p] = place(own, slot.sources[p], bytes, aligned ? whole : any);
        slot.outputs[p] = copies && draw(own, 4) != 0 ? place(own, slot.received[p], bytes, aligned ? whole : any) : moelink_rows{};
        if (in_place && slot.outputs[p].data == nullptr && round.combine_bytes <= geometry_.row_bytes[p] && geometry_.row_bytes[p] % 4 == 0) {
            slot.in_place = p;
        }
    }
    slot.combine_input = place(own, slot.input, round.combine_bytes, aligned ? whole : values);
    slot.combine_output = place(own, slot.output, round.combine_bytes, aligned ? whole : values);
    slot.combine_input.dtype = slot.combine_output.dtype = round.dtype;
}

void StressChapter::dispatch(Buffers &slot, Random &common, Random &own, bool capturing) {
    choose(slot, common, own);
    StressRound &round = slot.round;
    moelink_stream stream = session_.device().stream();
    for (int p = 0; p < round.payload_count; ++p) {
        round.payloads[p].source = static_cast<unsigned char *>(slot.payloads[p].data);
        round.payloads[p].source_stride = slot.payloads[p].row_stride;
    }
    steps_.prepare(round, stream);

    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    args.slot = slot.number;
    args.num_tokens = geometry_.most_tokens;
    args.num_tokens_device = slot.tokens;
    if (!capturing && slot.host_tokens) {
        const StressPair pair(round, slot.issued);
        args.num_tokens = pair.tokens(session_.rank());
        args.num_tokens_device = nullptr;
    }
    args.topk_ids = slot.ids;
    args.topk_ids_dtype = round.ids_bytes == 8 ? MOELINK_DTYPE_I64 : MOELINK_DTYPE_I32;
    args.topk_weights = round.weights;
    args.invalid_id = round.invalid_id;
    args.payload_count = round.payload_count;
    args.payloads = slot.payloads;
    args.outputs = slot.outputs;
    moelink_dispatched view = MOELINK_DISPATCHED_INIT;
    moelink_rows rows[stress_payloads] = {};
    view.payloads = rows;
    must(moelink_dispatch(manager_.get(), &args, stream, &view), "moelink_dispatch");
    for (int p = 0; p < round.payload_count; ++p) {
        round.payloads[p].received = static_cast<const unsigned char *>(rows[p].data);
        round.payloads[p].received_stride = rows[p].row_stride > 0 ? rows[p].row_stride : rows[p].row_bytes;
    }
    round.received_ids = view.topk_ids;
    round.received_weights = round.weights != nullptr ? view.topk_weights : nullptr;
    round.counts = view.recv_counts;
    if (slot.in_place >= 0) {
        slot.combine_input.data = rows[slot.in_place].data;
        slot.combine_input.row_stride = round.payloads[slot.in_place].received_stride;
    }
    round.input = static_cast<unsigned char *>(slot.combine_input.data);
    round.input_stride = slot.combine_input.row_stride;
    round.output = static_cast<const unsigned char *>(slot.combine_output.data);
    round.output_stride = slot.combine_output.row_stride;
    if (!slot.late) {
        steps_.receive(round, stream);
    }
    slot.dispatched = true;
}

void StressChapter::combine(Buffers &slot) {
    moelink_stream stream = session_.device().stream();
    if (slot.late) {
        steps_.receive(slot.round, stream);
    }
    moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
    args.slot = slot.number;
    args.mode = slot.round.weighted != 0 ? MOELINK_COMBINE_WEIGHTED : MOELINK_COMBINE_SUM;
    args.input = slot.combine_input;
    args.output = slot.combine_output;
    must(moelink_combine(manager_.get(), &args, stream), "moelink_combine");
    steps_.finish(slot.round, stream);
    slot.dispatched = false;
}

StressResult StressChapter::result() {
    session_.device().sync();
    StressResult result;
    session_.device().copy_out(&result, result_, sizeof result);
    if (result.wrong == 0 && moelink_manager_fault(manager_.get()) != MOELINK_OK) {
        throw std::runtime_error(moelink_manager_error(manager_.get()));
    }
    return result;
}

}  // namespace perf
