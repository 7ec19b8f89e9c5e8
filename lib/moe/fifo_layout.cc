#include "moe/fifo_layout.hpp"

#include "moe/cursor.hpp"

#include <algorithm>

namespace moelink {

namespace {

using namespace kernels;

// CUDA: channels and their depth, for so many other ranks and a bound on bytes.
void choose_channels(uint64_t others, uint64_t slots, uint64_t most_bytes, FifoLayout &fifo) {
    fifo.channels = static_cast<int32_t>(std::max<uint64_t>(1, max_fifo_channels / (std::max<uint64_t>(1, others) * slots)));
    fifo.depth = most_bytes != 0 ? max_fifo_depth : usual_fifo_depth;
    const auto bytes = [&] {
        return slots * others * static_cast<uint64_t>(fifo.channels) * static_cast<uint64_t>(fifo.depth) * fifo_tile;
    };
    while (most_bytes != 0 && bytes() > most_bytes) {
        if (fifo.depth > 2) {
            fifo.depth /= 2;
        } else if (fifo.channels > 1) {
            fifo.channels /= 2;
        } else if (fifo.depth > 1) {
            fifo.depth = 1;
        } else {
            break;
        }
    }
}

// Host: bytes of the FIFO from one rank.
uint64_t choose_bytes(uint64_t others, uint64_t slots, uint64_t most_bytes) {
    constexpr uint64_t usual = uint64_t{256} << 10, least = 64;
    if (most_bytes == 0) return usual;
    return std::max(least, most_bytes / (slots * std::max<uint64_t>(1, others)) / least * least);
}

}  // namespace

FifoPlan plan_fifos(const Config &config, int ranks, bool on_cuda) {
    FifoPlan plan;
    FifoLayout &fifo = plan.fifo;
    const auto r = static_cast<uint64_t>(ranks), others = r - 1, slots = static_cast<uint64_t>(config.slots);
    const auto capacity = static_cast<uint64_t>(config.max_tokens), top_k = static_cast<uint64_t>(config.top_k);
    plan.max_distinct = std::min(ranks, config.top_k);
    const auto distinct = static_cast<uint64_t>(plan.max_distinct);

    Cursor shared;
    if (on_cuda) {
        choose_channels(others, slots, config.fifo_bytes, fifo);
        const auto channels = static_cast<uint64_t>(fifo.channels), depth = static_cast<uint64_t>(fifo.depth);
        fifo.lines = shared.take({r, sizeof(FifoLine)});
        fifo.credits = shared.take({others, channels, sizeof(uint32_t)});
        fifo.tiles = shared.take({others, channels, depth, fifo_tile});
    } else {
        fifo.fifo_bytes = choose_bytes(others, slots, config.fifo_bytes);
        fifo.bell = shared.take({sizeof(FifoBell)});
        fifo.written = shared.take({others, sizeof(FifoPosition)});
        fifo.taken = shared.take({others, sizeof(FifoPosition)});
        fifo.fifos = shared.take({others, fifo.fifo_bytes});
    }
    fifo.bytes = shared.at();

    Cursor own;
    const auto words = static_cast<uint64_t>(fifo.channels);
    for (std::initializer_list<uint64_t> factors : std::initializer_list<std::initializer_list<uint64_t>>{
             {sizeof(FifoState)},
             {others, words, sizeof(uint32_t)},
             {others, words, sizeof(uint32_t)},
             {r, sizeof(int32_t)},
             {r + 1, sizeof(int32_t)},
             {r, sizeof(int32_t)},
             {r + 1, sizeof(int32_t)},
             {r, sizeof(int32_t)},
             {capacity, distinct, sizeof(int32_t)},
             {capacity, sizeof(int32_t)},
             {capacity, distinct, sizeof(int32_t)},
             {capacity, distinct, sizeof(int32_t)},
             {capacity, distinct, sizeof(float)},
             {r, capacity, sizeof(int32_t)},
             {r, sizeof(Filled)},
             {r, static_cast<uint64_t>(config.num_experts), sizeof(int64_t)},
         }) {
        plan.table_offsets_.push_back(own.take(factors));
    }
    const uint64_t before_ids = own.at();
    for (int i = 0; i < 2; ++i) plan.table_offsets_.push_back(own.take({r, capacity, top_k, sizeof(int32_t)}));
    plan.ids_bytes = own.at() - before_ids;
    plan.table_bytes = own.at();

    Cursor views;
    const bool no_views = (config.flags & MOELINK_MANAGER_F_NO_VIEWS) != 0;
    if (no_views && config.layouts != 1u << MOELINK_LAYOUT_RANK_MAJOR) {
        fail(MOELINK_ERR_INVALID_ARGUMENT,
             "config.layouts is {:#x} and config.flags has MOELINK_MANAGER_F_NO_VIEWS: layouts other than RANK_MAJOR are made of received rows, "
             "for which that leaves no memory",
             config.layouts);
    }
    if (!no_views) {
        for (uint64_t row_bytes : config.payload_row_bytes) {
            plan.view_strides.push_back(plane_stride(row_bytes));
            plan.view_offsets.push_back(views.take({r, capacity, plan.view_strides.back()}));
        }
    }
    plan.view_bytes = views.at();
    Cursor all;
    all.take({slots, fifo.bytes});
    all.take({slots, plan.table_bytes});
    all.take({slots, plan.view_bytes});
    return plan;
}

kernels::FifoTables FifoPlan::tables(unsigned char *memory) const {
    size_t next = 0;
    const auto take = [&]<class T>(T *&table) { table = reinterpret_cast<T *>(memory + table_offsets_[next++]); };
    FifoTables t{};
    take(t.state);
    take(t.sent);
    take(t.taken);
    take(t.send_counts);
    take(t.send_offsets);
    take(t.recv_counts);
    take(t.recv_offsets);
    take(t.source_tokens);
    take(t.send_tokens);
    take(t.distinct);
    take(t.distinct_ranks);
    take(t.back_rows);
    take(t.weight_sums);
    take(t.origins);
    take(t.filled);
    take(t.statistics);
    take(t.ids);
    take(t.weights);
    return t;
}

moelink_manager_sizes sizes_from(const FifoPlan &plan, const Config &config) {
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    const auto slots = static_cast<uint64_t>(config.slots);
    sizes.slots_per_rank = config.max_tokens;
    sizes.dispatch_bytes = slots * (plan.view_bytes + plan.ids_bytes);
    sizes.combine_bytes = slots * plan.fifo.bytes;
    sizes.control_bytes = slots * (plan.table_bytes - plan.ids_bytes);
    sizes.workspace_bytes = sizes.dispatch_bytes + sizes.combine_bytes + sizes.control_bytes;
    return sizes;
}

}  // namespace moelink
