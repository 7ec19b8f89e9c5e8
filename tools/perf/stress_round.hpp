// One pair of a stress run: what a rank sends, what it must receive and what must come back, all of it computed from the pair's key,
// on the host and in kernels alike.
#pragma once

#include <cstdint>

#include <moelink/base.h>

#include "values.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace perf {

inline constexpr int stress_payloads = 4;
inline constexpr int stress_ranks = 64;  // a set of ranks is one word
inline constexpr int stress_chunk = 32;  // tokens that one block looks after

enum class StressFault : uint32_t { none, count, id, empty_id, weight, payload, output };
enum class StressDamage : uint32_t { none, dispatch, combine };

// A wrong value.
struct StressRecord {
    uint64_t sequence;
    StressFault fault;
    int32_t slot;
    int32_t source;  // whose token
    int32_t token;   // of a count or an empty row: the row
    int32_t payload;
    int32_t column;  // a value, of payloads a 4-byte word
    uint32_t got;
    uint32_t wanted;
};

inline constexpr int stress_records = 8;

struct StressResult {
    uint64_t rows;
    uint64_t bytes;
    uint64_t wrong;
    uint64_t reserved;
    StressRecord records[stress_records];  // the first wrong ones
};

struct StressPayload {
    unsigned char *source;
    uint64_t source_stride;
    const unsigned char *received;
    uint64_t received_stride;
    uint64_t row_bytes;
};

struct StressRound {
    uint64_t seed;
    uint64_t *sequence;  // [2] number of the slot's next pair, and of the pair in flight
    StressResult *result;
    int32_t slot, rank, ranks, topk, experts, most_tokens;
    int32_t ids_bytes, invalid_id, payload_count, dtype, weighted;
    StressDamage damage;
    uint32_t most_delay_ns;
    void *ids;          // [tokens, topk]
    float *weights;     // [tokens, topk], or null
    int32_t *tokens;    // [1]
    const int32_t *received_ids;
    const float *received_weights;
    const int32_t *counts;
    int64_t slots_per_rank;
    unsigned char *input;  // of combine
    uint64_t input_stride;
    const unsigned char *output;
    uint64_t output_stride;
    uint64_t combine_bytes;
    StressPayload payloads[stress_payloads];

    PERF_BOTH int chunks() const { return (most_tokens + stress_chunk - 1) / stress_chunk; }
};

// The halves of a key that column_bits takes.
struct StressKey {
    uint32_t low, high;
    PERF_BOTH explicit StressKey(uint64_t key) : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}
    PERF_BOTH uint32_t at(uint32_t column) const { return column_bits(low, high, column); }
};

// Everything random about one pair.
class StressPair {
public:
    PERF_BOTH StressPair(uint64_t seed, int slot, uint64_t sequence, int topk, int experts, int ranks, int most_tokens)
        : key_(mix(mix(seed, static_cast<uint64_t>(slot)), sequence)), topk_(topk), experts_(experts), ranks_(ranks), most_tokens_(most_tokens) {}
    PERF_BOTH StressPair(const StressRound &round, uint64_t sequence)
        : StressPair(round.seed, round.slot, sequence, round.topk, round.experts, round.ranks, round.most_tokens) {}

    // None, few, as many as packets may carry, or any number.
    PERF_BOTH int tokens(int rank) const {
        const uint64_t bits = mix(key_, 0x100u + static_cast<uint64_t>(rank));
        const uint64_t kind = bits & 7, any = bits >> 8;
        const uint64_t wanted = kind == 0 ? 0 : kind < 3 ? 1 + any % 8 : kind < 5 ? any % 97 : any % (static_cast<uint64_t>(most_tokens_) + 1);
        return static_cast<int>(wanted < static_cast<uint64_t>(most_tokens_) ? wanted : static_cast<uint64_t>(most_tokens_));
    }

    // A valid id, or -1. In one pair of eight all ids are experts of the first rank.
    PERF_BOTH int32_t id(int rank, int token, int k) const {
        const uint32_t bits = id_bits(rank, token, k);
        if (dropped(bits)) {
            return -1;
        }
        const int among = (key_ >> 61) == 0 && experts_ >= ranks_ ? experts_ / ranks_ : experts_;
        return static_cast<int32_t>((bits >> 8) % static_cast<uint32_t>(among));
    }

    // As the caller writes it: what is dropped is -1, too large, or, in 64 bits, a valid id in its lower half.
    PERF_BOTH int64_t raw_id(int rank, int token, int k, int ids_bytes) const {
        const int32_t valid = id(rank, token, k);
        if (valid >= 0) {
            return valid;
        }
        const uint32_t bits = id_bits(rank, token, k);
        if ((bits & 0x80u) == 0) {
            return -1;
        }
        const int64_t other = (bits >> 8) % static_cast<uint32_t>(experts_);
        return ids_bytes == 8 ? other + (int64_t{1} << 32) : other + experts_;
    }

    PERF_BOTH float weight(int rank, int token, int k) const {
        return static_cast<float>(1 + StressKey(mix(key_, 0x300u + static_cast<uint64_t>(rank))).at(token_column(token, k)) % 3);
    }

    // The ranks that a token goes to.
    PERF_BOTH uint64_t ranks_of(int rank, int token) const {
        uint64_t set = 0;
        for (int k = 0; k < topk_; ++k) {
            const int32_t expert = id(rank, token, k);
            if (expert >= 0) {
                set |= uint64_t{1} << owner_of(expert, experts_, ranks_);
            }
        }
        return set;
    }

    PERF_BOTH bool goes(int rank, int token, int owner) const { return (ranks_of(rank, token) >> owner & 1) != 0; }

    // What combine multiplies an owner's row by: a small integer.
    PERF_BOTH float factor(int rank, int token, int owner) const {
        float sum = 0;
        for (int k = 0; k < topk_; ++k) {
            const int32_t expert = id(rank, token, k);
            if (expert >= 0 && owner_of(expert, experts_, ranks_) == owner) {
                sum += weight(rank, token, k);
            }
        }
        return sum;
    }

    // 4-byte words of a payload's row.
    PERF_BOTH StressKey payload(int rank, int token, int payload) const { return row_key(0x400u + static_cast<uint64_t>(payload), rank, token); }
    // Values of the row that an owner's experts give: integers that every type holds, so that sums are exact in fp32.
    PERF_BOTH StressKey expert(int rank, int token, int owner) const { return row_key(0x500u + static_cast<uint64_t>(owner), rank, token); }
    PERF_BOTH static float value(const StressKey &key, uint32_t column) {
        const uint32_t bits = key.at(column);
        return static_cast<float>((static_cast<int>(bits & 0xffu) - 128) * (1 << (bits >> 8 & 3u)));
    }

    // [ns] to lose before a phase on a rank: something in one case of eight.
    PERF_BOTH uint32_t delay(int rank, int phase, uint32_t most) const {
        const uint64_t bits = mix(key_, 0x600u + static_cast<uint64_t>(phase) * 0x100u + static_cast<uint64_t>(rank));
        return (bits & 7) == 0 && most > 0 ? static_cast<uint32_t>((bits >> 8) % most) : 0;
    }

private:
    PERF_BOTH static uint32_t token_column(int token, int k) { return static_cast<uint32_t>(token) * 32u + static_cast<uint32_t>(k); }
    PERF_BOTH uint32_t id_bits(int rank, int token, int k) const {
        return StressKey(mix(key_, 0x200u + static_cast<uint64_t>(rank))).at(token_column(token, k));
    }
    PERF_BOTH static bool dropped(uint32_t bits) { return (bits & 7) == 0; }
    PERF_BOTH StressKey row_key(uint64_t what, int rank, int token) const {
        return StressKey(mix(key_, what << 40 | static_cast<uint64_t>(rank) << 32 | static_cast<uint64_t>(token)));
    }

    uint64_t key_;
    int topk_, experts_, ranks_, most_tokens_;
};

// A value's bits in its type, rounded to nearest even.
PERF_BOTH inline uint32_t encoded(int32_t dtype, float value) {
#if defined(__CUDA_ARCH__)
    if (dtype == MOELINK_DTYPE_F16) {
        return __half_as_ushort(__float2half_rn(value));
    }
    return dtype == MOELINK_DTYPE_F32 ? __float_as_uint(value) : __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
    if (dtype == MOELINK_DTYPE_F16) {
        return float_to_half(value);
    }
    return dtype == MOELINK_DTYPE_F32 ? std::bit_cast<uint32_t>(value) : float_to_bf16(value);
#endif
}

// Up to 4 bytes at any address.
PERF_BOTH inline uint32_t load_bytes(const unsigned char *at, uint64_t count) {
    if (count >= 4 && reinterpret_cast<uint64_t>(at) % 4 == 0) {
        return *reinterpret_cast<const uint32_t *>(at);
    }
    uint32_t word = 0;
    for (uint64_t i = 0; i < count && i < 4; ++i) {
        word |= uint32_t{at[i]} << (8 * i);
    }
    return word;
}

PERF_BOTH inline void store_bytes(unsigned char *at, uint64_t count, uint32_t word) {
    if (count >= 4 && reinterpret_cast<uint64_t>(at) % 4 == 0) {
        *reinterpret_cast<uint32_t *>(at) = word;
        return;
    }
    for (uint64_t i = 0; i < count && i < 4; ++i) {
        at[i] = static_cast<unsigned char>(word >> (8 * i));
    }
}

// The work on one pair, by `width` threads of which this is the `lane`-th; on the host one does all.
class StressWork {
public:
    PERF_BOTH StressWork(const StressRound &round, uint64_t sequence, int lane, int width)
        : round_(round), pair_(round, sequence), sequence_(sequence), lane_(lane), width_(width) {}

    PERF_BOTH const StressPair &pair() const { return pair_; }

    // A token of ours as the caller hands it in.
    PERF_BOTH void prepare(int token) const {
        for (int k = lane_; k < round_.topk; k += width_) {
            const int64_t at = int64_t{token} * round_.topk + k;
            const int64_t id = pair_.raw_id(round_.rank, token, k, round_.ids_bytes);
            if (round_.ids_bytes == 8) {
                static_cast<int64_t *>(round_.ids)[at] = id;
            } else {
                static_cast<int32_t *>(round_.ids)[at] = static_cast<int32_t>(id);
            }
            if (round_.weights != nullptr) {
                round_.weights[at] = pair_.weight(round_.rank, token, k);
            }
        }
        for (int p = 0; p < round_.payload_count; ++p) {
            const StressPayload &payload = round_.payloads[p];
            const StressKey key = pair_.payload(round_.rank, token, p);
            unsigned char *row = payload.source + static_cast<uint64_t>(token) * payload.source_stride;
            for (uint64_t at = static_cast<uint64_t>(lane_) * 4; at < payload.row_bytes; at += static_cast<uint64_t>(width_) * 4) {
                const uint32_t damage = round_.damage == StressDamage::dispatch && token == 0 && at == 0 ? 1 : 0;
                store_bytes(row + at, payload.row_bytes - at, key.at(static_cast<uint32_t>(at / 4)) ^ damage);
            }
        }
    }

    // A row received from `source`, then what our experts give for it. Returns the number of bytes compared.
    PERF_BOTH uint64_t receive(int source, int token, int slot) const {
        const int64_t row = int64_t{source} * round_.slots_per_rank + slot;
        uint64_t bytes = static_cast<uint64_t>(round_.topk) * (round_.received_weights != nullptr ? 8 : 4);
        for (int k = lane_; k < round_.topk; k += width_) {
            const int32_t id = pair_.id(source, token, k);
            const bool ours = id >= 0 && owner_of(id, round_.experts, round_.ranks) == round_.rank;
            compare(StressFault::id, source, token, 0, k, static_cast<uint32_t>(round_.received_ids[row * round_.topk + k]),
                    static_cast<uint32_t>(ours ? id : round_.invalid_id));
            if (round_.received_weights != nullptr) {
                compare(StressFault::weight, source, token, 0, k, encoded(MOELINK_DTYPE_F32, round_.received_weights[row * round_.topk + k]),
                        encoded(MOELINK_DTYPE_F32, pair_.weight(source, token, k)));
            }
        }
        for (int p = 0; p < round_.payload_count; ++p) {
            const StressPayload &payload = round_.payloads[p];
            const StressKey key = pair_.payload(source, token, p);
            const unsigned char *from = payload.received + static_cast<uint64_t>(row) * payload.received_stride;
            for (uint64_t at = static_cast<uint64_t>(lane_) * 4; at < payload.row_bytes; at += static_cast<uint64_t>(width_) * 4) {
                const uint64_t left = payload.row_bytes - at;
                const uint32_t mask = left >= 4 ? ~0u : (1u << (8 * left)) - 1;
                compare(StressFault::payload, source, token, p, static_cast<int>(at / 4), load_bytes(from + at, left),
                        key.at(static_cast<uint32_t>(at / 4)) & mask);
            }
            bytes += payload.row_bytes;
        }
        return bytes;
    }

    // After all of the row was compared: combine's input may lie in the row itself.
    PERF_BOTH void expert(int source, int token, int slot) const {
        const int64_t row = int64_t{source} * round_.slots_per_rank + slot;
        const StressKey key = pair_.expert(source, token, round_.rank);
        unsigned char *to = round_.input + static_cast<uint64_t>(row) * round_.input_stride;
        const uint64_t size = value_bytes();
        for (uint64_t at = static_cast<uint64_t>(lane_) * size; at < round_.combine_bytes; at += static_cast<uint64_t>(width_) * size) {
            const float value = StressPair::value(key, static_cast<uint32_t>(at / size));
            const bool damaged = round_.damage == StressDamage::combine && token == 0 && at == 0;
            store_bytes(to + at, size, encoded(round_.dtype, damaged ? value + 1 : value));
        }
    }

    // A row beyond those that came.
    PERF_BOTH uint64_t empty(int source, int slot) const {
        const int64_t row = int64_t{source} * round_.slots_per_rank + slot;
        for (int k = lane_; k < round_.topk; k += width_) {
            compare(StressFault::empty_id, source, slot, 0, k, static_cast<uint32_t>(round_.received_ids[row * round_.topk + k]),
                    static_cast<uint32_t>(round_.invalid_id));
        }
        return static_cast<uint64_t>(round_.topk) * 4;
    }

    PERF_BOTH void count(int source, int rows) const {
        compare(StressFault::count, source, 0, 0, 0, static_cast<uint32_t>(round_.counts[source]), static_cast<uint32_t>(rows));
    }

    // A token's sum.
    PERF_BOTH uint64_t finish(int token) const {
        const uint64_t set = pair_.ranks_of(round_.rank, token);
        const unsigned char *from = round_.output + static_cast<uint64_t>(token) * round_.output_stride;
        const uint64_t size = value_bytes();
        constexpr int most = 8;  // columns of a thread at a time, so that factors are found once for all of them
        for (uint64_t first = static_cast<uint64_t>(lane_) * size; first < round_.combine_bytes; first += static_cast<uint64_t>(width_) * size * most) {
            float sum[most] = {};
            for (int owner = 0; owner < round_.ranks; ++owner) {
                if ((set >> owner & 1) == 0) {
                    continue;
                }
                const StressKey key = pair_.expert(round_.rank, token, owner);
                const float factor = round_.weighted != 0 ? pair_.factor(round_.rank, token, owner) : 1.0f;
                for (int i = 0; i < most; ++i) {
                    const uint64_t at = first + static_cast<uint64_t>(i * width_) * size;
                    sum[i] += factor * StressPair::value(key, static_cast<uint32_t>(at / size));
                }
            }
            for (int i = 0; i < most; ++i) {
                const uint64_t at = first + static_cast<uint64_t>(i * width_) * size;
                if (at < round_.combine_bytes) {
                    compare(StressFault::output, round_.rank, token, 0, static_cast<int>(at / size), load_bytes(from + at, size),
                            encoded(round_.dtype, sum[i]));
                }
            }
        }
        return round_.combine_bytes;
    }

    PERF_BOTH void add(uint64_t rows, uint64_t bytes) const {
        increase(&round_.result->rows, rows);
        increase(&round_.result->bytes, bytes);
    }

private:
    PERF_BOTH uint64_t value_bytes() const { return round_.dtype == MOELINK_DTYPE_F32 ? 4 : 2; }

    PERF_BOTH static uint64_t increase(uint64_t *number, uint64_t by) {
#if defined(__CUDA_ARCH__)
        return atomicAdd(reinterpret_cast<unsigned long long *>(number), static_cast<unsigned long long>(by));
#else
        const uint64_t before = *number;
        *number += by;
        return before;
#endif
    }

    PERF_BOTH void compare(StressFault fault, int source, int token, int payload, int column, uint32_t got, uint32_t wanted) const {
        if (got == wanted) {
            return;
        }
        const uint64_t index = increase(&round_.result->wrong, 1);
        if (index < stress_records) {
            round_.result->records[index] = {sequence_, fault, round_.slot, source, token, payload, column, got, wanted};
        }
    }

    const StressRound &round_;
    StressPair pair_;
    uint64_t sequence_;
    int lane_, width_;
};

// The three steps around dispatch and combine, in stream order. `load` is to be called before anything waits on the device.
struct StressSteps {
    void (*load)();
    void (*prepare)(const StressRound &round, moelink_stream stream);  // tokens, ids, weights, rows
    void (*receive)(const StressRound &round, moelink_stream stream);  // between: compares, and makes combine's input
    void (*finish)(const StressRound &round, moelink_stream stream);   // compares the sums
};
StressSteps stress_steps_host();
// Throws std::runtime_error where the program was built without CUDA.
StressSteps stress_steps_cuda();

}  // namespace perf
