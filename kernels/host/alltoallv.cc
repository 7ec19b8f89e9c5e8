// The two-sided manager on the host: prepare and alltoallv. One stream of bytes to each other rank: a header; with prepare the routing
// of each row and the statistics; then the rows, each with all of its tensors.
#include "fifo.hpp"
#include "token_rows.hpp"

#include <algorithm>
#include <cstring>

namespace moelink::kernels::host {

namespace {

// Token at its source, then ids and weights.
size_t routing_words(const Workspace &ws) { return 1 + 2 * static_cast<size_t>(ws.top_k); }

int64_t id_of(const FifoCall &call, int64_t token, int k) {
    const int64_t index = token * call.fifos.workspace.top_k + k;
    return call.ids_bytes == 8 ? static_cast<const int64_t *>(call.ids)[index] : static_cast<const int32_t *>(call.ids)[index];
}

// Distinct ranks of each token, counts, and the list of rows by destination.
void route(const FifoCall &call, int32_t tokens) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    ExpertRanks owners = ws.owners;
    std::fill(t.send_counts, t.send_counts + ws.ranks, 0);
    for (int64_t token = 0; token < tokens; ++token) {
        int32_t *ranks = t.distinct_ranks + token * ws.max_distinct;
        int32_t count = 0;
        for (int k = 0; k < ws.top_k; ++k) {
            const int32_t rank = owners.rank_of(id_of(call, token, k));
            if (rank >= 0 && std::find(ranks, ranks + count, rank) == ranks + count) ranks[count++] = rank;
        }
        std::sort(ranks, ranks + count);
        std::fill(ranks + count, ranks + ws.max_distinct, -1);
        t.distinct[token] = count;
        for (int32_t i = 0; i < count; ++i) ++t.send_counts[ranks[i]];
        for (int32_t i = 0; i < count && call.weights != nullptr; ++i) {
            float sum = 0;
            for (int k = 0; k < ws.top_k; ++k) {
                if (owners.rank_of(id_of(call, token, k)) == ranks[i]) sum += call.weights[token * ws.top_k + k];
            }
            t.weight_sums[token * ws.max_distinct + i] = sum;
        }
    }
    std::vector<int32_t> next(static_cast<size_t>(ws.ranks));
    t.send_offsets[0] = 0;
    for (int32_t rank = 0; rank < ws.ranks; ++rank) {
        next[static_cast<size_t>(rank)] = t.send_offsets[rank];
        t.send_offsets[rank + 1] = t.send_offsets[rank] + t.send_counts[rank];
    }
    for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t at = token * ws.max_distinct; at < (token + 1) * ws.max_distinct; ++at) {
            const int32_t rank = t.distinct_ranks[at];
            t.back_rows[at] = rank < 0 ? -1 : next[static_cast<size_t>(rank)]++;
            if (rank >= 0) t.send_tokens[t.back_rows[at]] = static_cast<int32_t>(token);
        }
    }
    t.state->tokens = tokens;
}

// What a rank is told of a row: other ranks' experts are not named.
void describe_row(const FifoCall &call, int32_t token, int32_t rank, uint32_t *words) {
    const Workspace &ws = call.fifos.workspace;
    ExpertRanks owners = ws.owners;
    words[0] = static_cast<uint32_t>(token);
    for (int k = 0; k < ws.top_k; ++k) {
        const int64_t id = id_of(call, token, k);
        words[1 + k] = static_cast<uint32_t>(owners.rank_of(id) == rank ? static_cast<int32_t>(id) : call.invalid_id);
        const float weight = call.weights != nullptr ? call.weights[int64_t{token} * ws.top_k + k] : 0.0f;
        std::memcpy(&words[1 + ws.top_k + k], &weight, sizeof weight);
    }
}

void store_row(const FifoCall &call, int32_t source, int32_t index, const uint32_t *words) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    const int64_t row = first_row(call.fifos, source) + index;
    const size_t bytes = static_cast<size_t>(ws.top_k) * sizeof(uint32_t);
    t.origins[int64_t{source} * ws.capacity + index] = static_cast<int32_t>(words[0]);
    std::memcpy(t.ids + row * ws.top_k, words + 1, bytes);
    std::memcpy(t.weights + row * ws.top_k, words + 1 + ws.top_k, bytes);
}

class RowsOut : public Outgoing {
public:
    RowsOut(const FifoCall &call, int32_t to, const FifoHeader &header)
        : call_(call), to_(to), header_(header), rows_(call.quantize, call.tensors), words_(routing_words(call.fifos.workspace)), routed_(call.prepares ? 0 : header.rows),
          statistics_(call.prepares && call.statistics_count > 0) {}

    bool next(const unsigned char **at, size_t *bytes) override {
        if (!began_) {
            began_ = true;
            return piece(&header_, sizeof header_, at, bytes);
        }
        if (routed_ < header_.rows) {
            describe_row(call_, token(routed_++), to_, words_.data());
            return piece(words_.data(), words_.size() * sizeof words_[0], at, bytes);
        }
        if (statistics_) {
            statistics_ = false;
            return piece(call_.statistics, static_cast<size_t>(call_.statistics_count) * sizeof(int64_t), at, bytes);
        }
        if (row_ == header_.rows || call_.tensor_count == 0) return false;
        if (tensor_ == 0) rows_.read(token(row_));
        piece(rows_.of(tensor_), call_.tensors[tensor_].row_bytes, at, bytes);
        if (++tensor_ == call_.tensor_count) {
            tensor_ = 0;
            ++row_;
        }
        return true;
    }

private:
    int32_t token(int32_t row) const { return call_.fifos.tables.send_tokens[call_.fifos.tables.send_offsets[to_] + row]; }

    static bool piece(const void *from, size_t count, const unsigned char **at, size_t *bytes) {
        *at = static_cast<const unsigned char *>(from);
        *bytes = count;
        return true;
    }

    const FifoCall &call_;
    int32_t to_;
    FifoHeader header_;
    TokenRows<FifoTensor> rows_;
    std::vector<uint32_t> words_;
    int32_t routed_;
    bool statistics_, began_ = false;
    int32_t row_ = 0;
    int tensor_ = 0;
};

// How many ranks' counts of this call have come; rows can be packed once all have.
struct Counts {
    int32_t missing;

    void take(const FifoWorkspace &fifos, int32_t source, const FifoHeader &header) {
        const FifoTables &t = fifos.tables;
        t.recv_counts[source] = header.rows;
        t.source_tokens[source] = header.tokens;
        if (--missing > 0) return;
        t.recv_offsets[0] = 0;
        for (int32_t rank = 0; rank < fifos.workspace.ranks; ++rank) t.recv_offsets[rank + 1] = t.recv_offsets[rank] + t.recv_counts[rank];
    }
};

class RowsIn : public Incoming {
public:
    RowsIn(const FifoCall &call, int32_t source, const FifoHeader &expected, Counts &counts)
        : call_(call), source_(source), expected_(expected), counts_(counts), words_(routing_words(call.fifos.workspace)),
          statistics_(call.prepares && call.statistics_count > 0) {}

    Next next(unsigned char **at, size_t *bytes) override {
        if (!began_) {
            began_ = true;
            return piece(&header_, sizeof header_, at, bytes);
        }
        if (!accepted_) {
            if (header_.epoch != expected_.epoch || header_.shape != expected_.shape) return Next::mismatch;
            if (!call_.prepares && header_.rows != call_.fifos.tables.recv_counts[source_]) return Next::mismatch;
            if (call_.prepares) counts_.take(call_.fifos, source_, header_);
            accepted_ = true;
        }
        if (call_.fifos.packed && counts_.missing > 0) return Next::later;
        if (call_.prepares && routed_ <= header_.rows) {
            if (routed_ > 0) store_row(call_, source_, routed_ - 1, words_.data());
            if (routed_++ < header_.rows) return piece(words_.data(), words_.size() * sizeof words_[0], at, bytes);
        }
        if (statistics_) {
            statistics_ = false;
            return piece(call_.fifos.tables.statistics + int64_t{source_} * call_.statistics_count,
                         static_cast<size_t>(call_.statistics_count) * sizeof(int64_t), at, bytes);
        }
        if (row_ == header_.rows || call_.tensor_count == 0) return Next::end;
        const FifoTensor &tensor = call_.tensors[tensor_];
        piece(tensor.output + static_cast<uint64_t>(first_row(call_.fifos, source_) + row_) * tensor.output_stride, tensor.row_bytes, at, bytes);
        if (++tensor_ == call_.tensor_count) {
            tensor_ = 0;
            ++row_;
        }
        return Next::piece;
    }

private:
    static Next piece(void *to, size_t count, unsigned char **at, size_t *bytes) {
        *at = static_cast<unsigned char *>(to);
        *bytes = count;
        return Next::piece;
    }

    const FifoCall &call_;
    int32_t source_;
    FifoHeader expected_, header_{};
    Counts &counts_;
    std::vector<uint32_t> words_;
    bool statistics_, began_ = false, accepted_ = false;
    int32_t routed_ = 0, row_ = 0;
    int tensor_ = 0;
};

// Rows that this rank's own experts work on.
void keep_own(const FifoCall &call) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    std::vector<uint32_t> words(routing_words(ws));
    TokenRows rows(call.quantize, call.tensors);
    for (int32_t i = 0; i < t.send_counts[ws.rank]; ++i) {
        const int32_t token = t.send_tokens[t.send_offsets[ws.rank] + i];
        if (call.prepares) {
            describe_row(call, token, ws.rank, words.data());
            store_row(call, ws.rank, i, words.data());
        }
        if (call.tensor_count > 0) rows.read(token);
        for (int p = 0; p < call.tensor_count; ++p) {
            const FifoTensor &tensor = call.tensors[p];
            std::memcpy(tensor.output + static_cast<uint64_t>(first_row(call.fifos, ws.rank) + i) * tensor.output_stride, rows.of(p),
                        tensor.row_bytes);
        }
    }
    if (call.prepares && call.statistics_count > 0) {
        std::memcpy(t.statistics + int64_t{ws.rank} * call.statistics_count, call.statistics,
                    static_cast<size_t>(call.statistics_count) * sizeof(int64_t));
    }
}

// Marks the rows of topk_ids that hold none, once: rows already marked with the same id stay. Packed rows fill the part of one source
// after another.
void fill_ids(const FifoCall &call) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    for (int32_t source = 0; source < ws.ranks; ++source) {
        const int64_t begin = int64_t{source} * ws.capacity;
        const int32_t rows = call.fifos.packed ? static_cast<int32_t>(std::clamp<int64_t>(t.recv_offsets[ws.ranks] - begin, 0, ws.capacity))
                                               : t.recv_counts[source];
        Filled *filled = t.filled + source;
        const int32_t end = filled->id == call.invalid_id ? filled->rows : ws.capacity;
        int32_t *ids = t.ids + begin * ws.top_k;
        if (rows < end) std::fill(ids + int64_t{rows} * ws.top_k, ids + int64_t{end} * ws.top_k, call.invalid_id);
        *filled = {rows, call.invalid_id};
    }
}

}  // namespace

Fault alltoallv(const FifoCall &call, const Watch &watch) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    const uint32_t epoch = next_epoch(t.state->calls);
    if (call.prepares) {
        int32_t tokens = call.tokens;
        if (call.tokens_device != nullptr) tokens = std::clamp(*call.tokens_device, 0, call.tokens);
        route(call, tokens);
    }
    Counts counts{call.prepares ? ws.ranks : 0};
    const auto header_to = [&](int32_t rank) { return FifoHeader{epoch, call.shape, t.send_counts[rank], t.state->tokens}; };
    Traffic traffic(call.fifos);
    for (int32_t i = 1; i < ws.ranks; ++i) {
        const int32_t other = (ws.rank + i) % ws.ranks;
        traffic.add(other, std::make_unique<RowsOut>(call, other, header_to(other)),
                    std::make_unique<RowsIn>(call, other, header_to(other), counts));
    }
    if (call.prepares) counts.take(call.fifos, ws.rank, header_to(ws.rank));
    bool kept = false;
    const auto keep = [&] {
        if (kept || (call.fifos.packed && counts.missing > 0)) return false;
        keep_own(call);
        return kept = true;
    };
    const Fault fault = traffic.run(keep, phase_dispatch, watch);
    if (fault.code != fault_none) return fault;
    if (call.prepares) fill_ids(call);
    t.state->calls = epoch;
    return fault;
}

}  // namespace moelink::kernels::host
