// Where the tokens of a rank go: the distinct ranks of each token, and the slot of its row there. Slots are numbered in token
// order without atomics; the same tokens get the same slots in every run.
#pragma once

#include "common/bulk.cuh"

namespace moelink::kernels::cuda {

inline constexpr int batch_tokens = 128;
static_assert(batch_tokens <= block_threads);

struct Destination {
    int32_t rank;
    int32_t slot;
};

// A block's routes. A batch is found, then after a block barrier numbered, then after another one used.
struct Routes {
    int32_t partial[block_warps][max_cuda_ranks];         // rows of tokens before the block's, as each warp counted them
    uint32_t sets[batch_tokens][max_cuda_ranks / 32];     // the distinct ranks of each token as bits
    int32_t before[max_cuda_ranks];                       // rows before the block's to each rank
    int32_t next[max_cuda_ranks];                         // slot of the batch's first row to each rank
    int32_t after[max_cuda_ranks];                        // slot after the batch's last row to each rank
    Destination to[batch_tokens][max_top_k];
    int32_t distinct[batch_tokens];
};

// The distinct ranks of one token as bits; Words 32-bit words.
template <int Words>
struct RankSet {
    uint32_t bits[Words] = {};

    // Negative: none.
    __device__ __forceinline__ void add(int32_t rank) {
        if constexpr (Words == 1) {
            if (rank >= 0) bits[0] |= 1u << rank;
        } else {
#pragma unroll
            for (int w = 0; w < Words; ++w) bits[w] |= rank >> 5 == w ? 1u << (rank & 31) : 0u;
        }
    }
};

// Params here and below: DispatchParams, or what has its workspace, ids and whole_ids.
template <class Id, class Params>
__device__ __forceinline__ Id read_id(const Params &params, int64_t token, int k) {
    return static_cast<const Id *>(params.ids)[token * params.workspace.top_k + k];
}

// Some ids of one token, in flight together.
template <class Id>
struct SomeIds {
    static constexpr int count = 8;
    Id id[count];

    template <class Params>
    __device__ __forceinline__ void load(const Params &params, int64_t token, int first) {
        constexpr int each = 16 / sizeof(Id);
        struct alignas(16) Ids {
            Id id[each];
        };
        const int top_k = params.workspace.top_k;
        const Id *at = static_cast<const Id *>(params.ids) + token * top_k;
        if (params.whole_ids != 0) {
#pragma unroll
            for (int u = 0; u < count; u += each) {
                const Ids some = *reinterpret_cast<const Ids *>(at + min(first + u, top_k - each));
#pragma unroll
                for (int i = 0; i < each; ++i) id[u + i] = some.id[i];
            }
        } else {
#pragma unroll
            for (int u = 0; u < count; ++u) id[u] = at[min(first + u, top_k - 1)];
        }
    }
};

// The distinct ranks of one token, of which the first ids are loaded. An id that is read twice changes nothing.
template <class Id, int Words, class Params>
__device__ __forceinline__ RankSet<Words> ranks_of(const Params &params, int64_t token, SomeIds<Id> ids) {
    const ExpertRanks &owners = params.workspace.owners;
    const int top_k = params.workspace.top_k;
    RankSet<Words> set;
    if (owners.divides_small()) {  // alone in the code of those who go the usual way
        for (int first = 0;;) {
#pragma unroll
            for (int u = 0; u < ids.count; ++u) set.add(owners.rank_of_small(ids.id[u]));
            first += ids.count;
            if (first >= top_k) return set;
            ids.load(params, token, first);
        }
    }
#pragma unroll 1
    for (int k = 0; k < top_k; ++k) set.add(owners.rank_of(read_id<Id>(params, token, k)));
    return set;
}

// Counts the tokens before the block's, [first, end), that go to each rank: all warps, each into its own part.
template <class Id, int Words, class Params>
__device__ __forceinline__ void count_before(const Params &params, int64_t end, Routes &routes, int64_t first = 0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t count[Words] = {};
    int64_t token = first + threadIdx.x;
    SomeIds<Id> coming;
    if (token - lane < end) coming.load(params, min(token, end - 1), 0);
    for (; token - lane < end; token += block_threads) {
        const SomeIds<Id> ids = coming;
        if (token - lane + block_threads < end) coming.load(params, min(token + block_threads, end - 1), 0);
        RankSet<Words> set;
        if (token < end) set = ranks_of<Id, Words>(params, token, ids);
#pragma unroll
        for (int w = 0; w < Words; ++w) {
            const int bits = min(32, params.workspace.ranks - w * 32);
            for (int bit = 0; bit < bits; ++bit) {
                const int32_t tokens = __popc(__ballot_sync(all_lanes, set.bits[w] >> bit & 1u));
                if (lane == bit) count[w] += tokens;
            }
        }
    }
#pragma unroll
    for (int w = 0; w < Words; ++w) {
        if (w * 32 + lane < params.workspace.ranks) routes.partial[warp][w * 32 + lane] = count[w];
    }
}

// Finds the distinct ranks of a batch's tokens: an id a lane, so that few tokens take few steps.
template <class Id, int Words, class Params>
__device__ __forceinline__ void find_batch(const Params &params, int64_t begin, int tokens, Routes &routes) {
    const int top_k = params.workspace.top_k;
    const int shift = top_k > 1 ? 32 - __clz(top_k - 1) : 0;  // lanes of a token: the power of two that holds top_k
    const int lane = threadIdx.x % 32, k = lane & ((1 << shift) - 1);
    const int warp = (2 * block_warps - 1 - bulk_warps - static_cast<int>(threadIdx.x / 32)) % block_warps;  // the first have more of what comes before, the last rows
    for (int first = warp << (5 - shift); first < tokens; first += block_threads >> shift) {
        const int local = first + (lane >> shift);
        int32_t rank = -1;
        if (local < tokens && k < top_k) rank = params.workspace.owners.rank_of(read_id<Id>(params, begin + local, k));
        RankSet<Words> set;
        set.add(rank);
#pragma unroll
        for (int w = 0; w < Words; ++w) {
            for (int step = 1; step < 1 << shift; step *= 2) set.bits[w] |= __shfl_xor_sync(all_lanes, set.bits[w], step);
            if (k == 0 && local < tokens) routes.sets[local][w] = set.bits[w];
        }
    }
}

// Of what all warps counted.
__device__ __forceinline__ int32_t rows_before(int rank, const Routes &routes) {
    int32_t sum = 0;
#pragma unroll
    for (int warp = 0; warp < block_warps; ++warp) sum += routes.partial[warp][rank];
    return sum;
}

// One warp for each 32 tokens of a batch, the first of which is `begin`, gives them their owners, in rank order, with their slots.
// A rank that gets every token has each token's row in the slot of its number. `counted`: the rows before were counted just now.
template <int Words>
__device__ __forceinline__ void number_batch(Spread spread, int ranks, int64_t begin, int tokens, Routes &routes, bool counted = false) {
    if (spread != spread_owners && threadIdx.x < ranks) routes.after[threadIdx.x] = static_cast<int32_t>(begin) + tokens;
    if (spread == spread_no_routing) return;
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const int last = max(0, (tokens - 1) / 32);
    if (group > last) return;
    const int local = group * 32 + lane;
    int distinct = 0;
#pragma unroll
    for (int w = 0; w < Words; ++w) {
        const int bits = min(32, ranks - w * 32);
        int32_t next = 0;
        if (lane < bits) {
            next = counted ? rows_before(w * 32 + lane, routes) : routes.next[w * 32 + lane];
            if (counted && group == 0) routes.before[w * 32 + lane] = next;
        }
        for (int earlier = 0; earlier < group; ++earlier) {
            const uint32_t set = routes.sets[earlier * 32 + lane][w];
            for (int bit = 0; bit < bits; ++bit) {
                const int32_t going = __popc(__ballot_sync(all_lanes, set >> bit & 1u));
                if (lane == bit) next += going;
            }
        }
        const uint32_t set = local < tokens ? routes.sets[local][w] : 0u;
        for (int bit = 0; bit < bits; ++bit) {
            const bool goes = set >> bit & 1u;
            const uint32_t going = __ballot_sync(all_lanes, goes);
            const int32_t first = __shfl_sync(all_lanes, next, bit);
            const int32_t slot = spread == spread_all ? static_cast<int32_t>(begin) + local : first + __popc(going & ((1u << lane) - 1u));
            if (goes) routes.to[local][distinct++] = {w * 32 + bit, slot};
            if (lane == bit) next += __popc(going);
        }
        if (spread == spread_owners && group == last && lane < bits) routes.after[w * 32 + lane] = next;
    }
    if (local < tokens) routes.distinct[local] = distinct;
}

// What kernels for owners alone know early.
template <bool to_all>
__device__ __forceinline__ Spread spread_of(const DispatchParams &params) {
    return to_all ? params.spread : spread_owners;
}

// Where the row of one token of a batch goes.
class Sendings {
public:
    __device__ __forceinline__ Sendings(Spread spread, const DispatchParams &params, const Routes &routes, int local, int64_t token)
        : spread_(spread), sets_(routes.sets[local]), to_(routes.to[local]), token_(static_cast<int32_t>(token)),
          count_(spread_ == spread_owners ? routes.distinct[local] : params.workspace.ranks),
          owners_(spread_ == spread_no_routing ? 0 : routes.distinct[local]) {}

    __device__ __forceinline__ int count() const { return count_; }
    __device__ __forceinline__ Destination at(int j) const { return spread_ == spread_owners ? to_[j] : Destination{j, token_}; }
    // Where a rank begins, so that ranks begin with different ones; of two, each with the other.
    __device__ __forceinline__ int first(int rank) const { return (rank + 1) % max(count_, 1); }
    // Which of the ranks that send a row back the j-th is; -1: none of them.
    __device__ __forceinline__ int32_t distinct(int j) const { return spread_ == spread_all ? place_among_owners(j) : j; }

    __device__ __forceinline__ int owners() const { return owners_; }
    __device__ __forceinline__ Destination owner(int i) const { return to_[i]; }

private:
    __device__ __forceinline__ int32_t place_among_owners(int rank) const {
        const uint32_t set = sets_[rank / 32], bit = 1u << rank % 32;
        if ((set & bit) == 0) return -1;
        int32_t place = __popc(set & (bit - 1));
        for (int w = 0; w < rank / 32; ++w) place += __popc(sets_[w]);
        return place;
    }

    Spread spread_;
    const uint32_t *sets_;
    const Destination *to_;
    int32_t token_;
    int count_;
    int owners_;
};

// The batch is numbered; the next one follows it.
__device__ __forceinline__ void advance(int ranks, Routes &routes) {
    const int rank = threadIdx.x;
    if (rank < ranks) routes.next[rank] = routes.after[rank];
}

}  // namespace moelink::kernels::cuda
