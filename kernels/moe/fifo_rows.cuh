// Which rows a rank sends to each rank: by the tables of a routing that a kernel before has prepared, or, of few tokens, found by every
// block for itself, which saves that kernel.
#pragma once

#include "moe/fifo.cuh"

namespace moelink::kernels::cuda {

inline constexpr int found_tokens = 128;  // most of a call whose blocks find the rows
inline constexpr int found_words = found_tokens / 32;

__device__ __forceinline__ int64_t read_id(const FifoCall &call, int64_t index) {
    return call.ids_bytes == 8 ? static_cast<const int64_t *>(call.ids)[index] : static_cast<const int32_t *>(call.ids)[index];
}

// The two kinds of rows have the same calls. token() is for all lanes of a warp at once, with the same arguments.
class TableRows {
public:
    static constexpr bool many = true;
    explicit __device__ TableRows(const FifoCall &call) : tables_(call.fifos.tables) {}
    __device__ __forceinline__ int32_t count(int32_t to) const { return tables_.send_counts[to]; }
    __device__ __forceinline__ int32_t token(int32_t to, int32_t row) const { return tables_.send_tokens[tables_.send_offsets[to] + row]; }

private:
    const FifoTables &tables_;
};

// The tokens that go to each rank, as bits.
struct TokenBits {
    uint32_t words[max_cuda_ranks][found_words];
    int32_t offsets[max_cuda_ranks];  // of a rank's rows in send_tokens
};

class FoundRows {
public:
    static constexpr bool many = false;
    // By all threads of a block, which meet at a barrier before they use it.
    __device__ FoundRows(const FifoCall &call, int32_t tokens, TokenBits &bits) : bits_(bits) {
        const Workspace &ws = call.fifos.workspace;
        const int lane = threadIdx.x % 32, groups = (tokens + 31) / 32;
#pragma unroll 1
        for (int i = threadIdx.x; i < ws.ranks * found_words; i += block_threads) bits.words[i / found_words][i % found_words] = 0;
        __syncthreads();
#pragma unroll 1
        for (int item = threadIdx.x / 32; item < groups * ws.top_k; item += block_threads / 32) {
            const int group = item % groups, k = item / groups, token = group * 32 + lane;
            const int32_t rank = token < tokens ? ws.owners.rank_of(read_id(call, int64_t{token} * ws.top_k + k)) : -1;
            const uint32_t alike = __match_any_sync(whole_warp, rank);
            if (rank >= 0 && lane == __ffs(alike) - 1) atomicOr(&bits.words[rank][group], alike);
        }
    }

    __device__ __forceinline__ int32_t count(int32_t to) const {
        int32_t rows = 0;
#pragma unroll
        for (int word = 0; word < found_words; ++word) rows += __popc(bits_.words[to][word]);
        return rows;
    }

    __device__ __forceinline__ int32_t token(int32_t to, int32_t row) const {
        const int lane = threadIdx.x % 32;
        int32_t before = 0, token = 0;
#pragma unroll
        for (int word = 0; word < found_words; ++word) {
            const uint32_t set = bits_.words[to][word];
            const bool here = (set >> lane & 1u) && before + __popc(set & ((1u << lane) - 1u)) == row;
            const uint32_t found = __ballot_sync(whole_warp, here);
            if (found != 0) token = word * 32 + __ffs(found) - 1;
            before += __popc(set);
        }
        return token;
    }

    // Where the row of a token that goes to a rank is among that rank's.
    __device__ __forceinline__ int32_t row_of(int32_t token, int32_t rank) const {
        int32_t before = 0;
#pragma unroll
        for (int word = 0; word < found_words; ++word) {
            const uint32_t set = bits_.words[rank][word];
            before += __popc(word < token / 32 ? set : word == token / 32 ? set & ((1u << token % 32) - 1u) : 0u);
        }
        return before;
    }

    __device__ __forceinline__ bool goes(int32_t token, int32_t rank) const { return bits_.words[rank][token / 32] >> token % 32 & 1u; }

private:
    const TokenBits &bits_;
};

__device__ __forceinline__ int32_t tokens_of(const FifoCall &call) {
    return call.tokens_device != nullptr ? max(0, min(call.tokens, *call.tokens_device)) : call.tokens;
}

// --- what later calls and the caller need of a routing ------------------------------------------------------------------------

// Where each rank's rows begin in send_tokens: by all threads of a block. Rows: anything with their count().
template <class Rows>
__device__ __forceinline__ void find_offsets(const Rows &rows, int32_t ranks, int32_t *offsets) {
    const int32_t rank = threadIdx.x;
    if (rank >= ranks) return;
    int32_t offset = 0;
#pragma unroll 1
    for (int32_t earlier = 0; earlier < rank; ++earlier) offset += rows.count(earlier);
    offsets[rank] = offset;
}

// Rows to each rank, here and at every other rank; by all threads of one block.
template <class Rows>
__device__ __forceinline__ void tell_counts(const FifoCall &call, const Rows &rows, int32_t tokens, uint32_t epoch, const int32_t *offsets) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const int32_t rank = threadIdx.x;
    if (rank < ws.ranks) {
        const int32_t count = rows.count(rank);
        tables.send_counts[rank] = count;
        tables.send_offsets[rank] = offsets[rank];
        if (rank == ws.ranks - 1) tables.send_offsets[ws.ranks] = offsets[rank] + count;
        if (rank != ws.rank) {
            FifoLine *line = line_of(call.fifos, peer_of(ws, rank), ws.rank);
            stagger();
            store_relaxed(&line->tokens[epoch & 1], tagged(epoch, static_cast<uint32_t>(tokens)));
            store_relaxed(&line->rows[epoch & 1], tagged(epoch, static_cast<uint32_t>(count)));
        }
    }
    if (threadIdx.x == 0) {
        if (tables.state->prepared != 0) report(ws, fault_pairing, ws.rank, phase_dispatch);
        tables.state->tokens = tokens;
    }
}

// Of one token whose row for `rank`, the j-th of its ranks, is row `place` in the list of all: by one lane.
__device__ __forceinline__ void keep_row(const FifoTables &tables, const Workspace &ws, int64_t token, int j, int32_t rank, int32_t place) {
    tables.send_tokens[place] = static_cast<int32_t>(token);
    tables.distinct_ranks[token * ws.max_distinct + j] = rank;
    tables.back_rows[token * ws.max_distinct + j] = place;
}

// The end of a token's lists: by a warp.
__device__ __forceinline__ void keep_distinct(const FifoTables &tables, const Workspace &ws, int64_t token, int distinct) {
    const int lane = threadIdx.x % 32;
    if (lane >= distinct && lane < ws.max_distinct) {
        tables.distinct_ranks[token * ws.max_distinct + lane] = -1;
        tables.back_rows[token * ws.max_distinct + lane] = -1;
    }
    if (lane == 0) tables.distinct[token] = distinct;
}

// A token's weights, one a lane, for the sums over each rank's experts.
struct TokenWeights {
    float weight = 0.0f;
    int32_t owner = -1;

    __device__ TokenWeights(const FifoCall &call, int64_t token) {
        const Workspace &ws = call.fifos.workspace;
        const int lane = threadIdx.x % 32;
        if (call.weights == nullptr || lane >= ws.top_k) return;
        weight = call.weights[token * ws.top_k + lane];
        owner = ws.owners.rank_of(read_id(call, token * ws.top_k + lane));
    }

    // By all lanes, of a rank a lane.
    __device__ __forceinline__ float sum_of(int32_t rank, int top_k) const {
        float sum = 0.0f;
#pragma unroll 1
        for (int k = 0; k < top_k; ++k) {
            const float other = __shfl_sync(whole_warp, weight, k);
            if (__shfl_sync(whole_warp, owner, k) == rank) sum += other;
        }
        return sum;
    }
};

}  // namespace moelink::kernels::cuda
