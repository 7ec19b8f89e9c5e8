// The way back of the two-sided manager on the host: rows go to their tokens' owners in token order, and each owner adds the rows of
// one token after another, in rank order. A row is kept beside the FIFO until the token's other rows are there.
#include "fifo.hpp"
#include "sum.hpp"

namespace moelink::kernels::host {

namespace {

class BackOut : public Outgoing {
public:
    BackOut(const FifoCombine &call, int32_t to, const FifoHeader &header) : call_(call), to_(to), header_(header) {}

    bool next(const unsigned char **at, size_t *bytes) override {
        if (!began_) {
            began_ = true;
            *at = reinterpret_cast<const unsigned char *>(&header_);
            *bytes = sizeof header_;
            return true;
        }
        if (row_ == header_.rows) return false;
        *at = call_.input + static_cast<uint64_t>(first_row(call_.fifos, to_) + row_++) * call_.input_stride;
        *bytes = call_.row_bytes;
        return true;
    }

private:
    const FifoCombine &call_;
    int32_t to_;
    FifoHeader header_;
    bool began_ = false;
    int32_t row_ = 0;
};

class BackIn : public Incoming {
public:
    BackIn(const FifoCombine &call, const FifoHeader &expected) : expected_(expected), row_(call.row_bytes) {}

    Next next(unsigned char **at, size_t *bytes) override {
        if (!began_) {
            began_ = true;
            *at = reinterpret_cast<unsigned char *>(&header_);
            *bytes = sizeof header_;
            return Next::piece;
        }
        if (header_.epoch != expected_.epoch || header_.shape != expected_.shape || header_.rows != expected_.rows) return Next::mismatch;
        if (filling_) full_ = true;
        filling_ = false;
        if (full_) return Next::later;
        if (rows_ == expected_.rows) return Next::end;
        ++rows_;
        filling_ = true;
        *at = row_.data();
        *bytes = row_.size();
        return Next::piece;
    }

    // The row in hand; nullptr: none has come whole.
    const unsigned char *row() const { return full_ ? row_.data() : nullptr; }
    void drop() { full_ = false; }

private:
    FifoHeader expected_, header_{};
    std::vector<unsigned char> row_;
    bool began_ = false, filling_ = false, full_ = false;
    int32_t rows_ = 0;
};

// Adds the tokens whose rows have all come, in order.
class Adder {
public:
    explicit Adder(const FifoCombine &call)
        : call_(call), sum_(best_sum_code().of(call.value_type)), values_(call.row_bytes / (call.value_type == value_f32 ? 4 : 2)),
          from_(static_cast<size_t>(call.fifos.workspace.ranks), nullptr) {}

    void listen(int32_t rank, BackIn *in) { from_[static_cast<size_t>(rank)] = in; }

    bool add() {
        const FifoTables &t = call_.fifos.tables;
        bool some = false;
        const unsigned char *rows[max_top_k];
        for (; token_ < t.state->tokens && find(rows); ++token_) {
            const int64_t first = token_ * call_.fifos.workspace.max_distinct;
            const int32_t count = t.distinct[token_];
            sum_(call_.output + static_cast<uint64_t>(token_) * call_.output_stride, rows, call_.weighted ? t.weight_sums + first : nullptr, count,
                 values_);
            for (int32_t i = 0; i < count; ++i) {
                if (BackIn *in = from_[static_cast<size_t>(t.distinct_ranks[first + i])]; in != nullptr) in->drop();
            }
            some = true;
        }
        return some;
    }

private:
    bool find(const unsigned char **rows) const {
        const Workspace &ws = call_.fifos.workspace;
        const FifoTables &t = call_.fifos.tables;
        const int64_t first = token_ * ws.max_distinct;
        for (int32_t i = 0; i < t.distinct[token_]; ++i) {
            const int32_t rank = t.distinct_ranks[first + i];
            if (rank == ws.rank) {
                const int64_t row = first_row(call_.fifos, rank) + t.back_rows[first + i] - t.send_offsets[rank];
                rows[i] = call_.input + static_cast<uint64_t>(row) * call_.input_stride;
            } else {
                rows[i] = from_[static_cast<size_t>(rank)]->row();
            }
            if (rows[i] == nullptr) return false;
        }
        return true;
    }

    const FifoCombine &call_;
    SumRows sum_;
    size_t values_;
    std::vector<BackIn *> from_;
    int64_t token_ = 0;
};

}  // namespace

Fault alltoallv_combine(const FifoCombine &call, const Watch &watch) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &t = call.fifos.tables;
    const uint32_t epoch = next_epoch(t.state->calls);
    Adder adder(call);
    Traffic traffic(call.fifos);
    for (int32_t i = 1; i < ws.ranks; ++i) {
        const int32_t other = (ws.rank + i) % ws.ranks;
        auto in = std::make_unique<BackIn>(call, FifoHeader{epoch, call.shape, t.send_counts[other], 0});
        adder.listen(other, in.get());
        traffic.add(other, std::make_unique<BackOut>(call, other, FifoHeader{epoch, call.shape, t.recv_counts[other], 0}), std::move(in));
    }
    const Fault fault = traffic.run([&] { return adder.add(); }, phase_combine, watch);
    if (fault.code == fault_none) t.state->calls = epoch;
    return fault;
}

}  // namespace moelink::kernels::host
