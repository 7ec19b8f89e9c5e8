#include "group/round.hpp"

#include "base/error.hpp"

#include <algorithm>
#include <new>

namespace moelink {

std::string call_text(const Call &call) {
    switch (call.op) {
    case op_open: return "the creation of the group";
    case op_allgather: return call.bytes == 0 ? "barrier" : fmt::format("allgather of {} bytes", call.bytes);
    case op_broadcast: return fmt::format("broadcast of {} bytes from rank {}", call.bytes, call.root);
    case op_finalize: return "finalize";
    default: return fmt::format("operation {}", call.op);
    }
}

std::string ranks_text(const std::vector<int> &ranks) {
    std::string text;
    for (size_t i = 0; i < ranks.size();) {
        size_t last = i;
        while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
        if (!text.empty()) text += ", ";
        text += last < i + 2 ? std::to_string(ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
        i = last < i + 2 ? i + 1 : last + 1;
    }
    return text;
}

Decision Decision::failure(uint64_t seq, uint32_t op, moelink_status status, const std::string &text) {
    Head head{seq, op, status};
    auto frame = std::make_shared<Bytes>(sizeof head + text.size());
    std::memcpy(frame->data(), &head, sizeof head);
    std::memcpy(frame->data() + sizeof head, text.data(), text.size());
    return Decision(std::move(frame));
}

Round::Round(int size) : size_(size), here_(static_cast<size_t>(size)) {}

bool Round::well_formed(const Call &call, uint64_t data_bytes, int size) {
    if (call.rank < 0 || call.rank >= size) return false;
    switch (call.op) {
    case op_allgather: return data_bytes == call.bytes;
    case op_broadcast: return call.root >= 0 && call.root < size && data_bytes == (call.rank == call.root ? call.bytes : 0);
    case op_open:
    case op_finalize: return call.bytes == 0 && data_bytes == 0;
    default: return false;
    }
}

std::unique_ptr<Decision> Round::add(const Call &call, const uint8_t *data) {
    auto rank = static_cast<size_t>(call.rank);
    if (call.seq != seq_ || here_[rank]) return nullptr;
    here_[rank] = true;
    if (arrived_++ == 0) {
        first_ = call;
        uint64_t result = call.op == op_allgather ? call.bytes * static_cast<uint64_t>(size_) : call.bytes;
        try {
            frame_.resize(sizeof(Decision::Head) + result);
        } catch (const std::exception &) {
            no_memory_ = true;
        }
    } else if (!contradiction_ && (call.op != first_.op || call.bytes != first_.bytes || call.root != first_.root)) {
        contradiction_ = true;
        other_ = call;
    }
    if (!contradiction_ && !no_memory_ && call.bytes != 0) {
        uint8_t *result = frame_.data() + sizeof(Decision::Head);
        if (call.op == op_allgather) std::memcpy(result + rank * call.bytes, data, call.bytes);
        if (call.op == op_broadcast && call.rank == call.root) std::memcpy(result, data, call.bytes);
    }
    if (arrived_ < size_) return nullptr;
    return std::make_unique<Decision>(decide());
}

Decision Round::decide() {
    Decision::Head head{seq_, first_.op, MOELINK_OK};
    Call first = first_;
    Call other = other_;
    bool contradiction = contradiction_;
    bool no_memory = no_memory_;
    Bytes frame = std::move(frame_);
    next();
    if (contradiction) {
        if (other.rank < first.rank) std::swap(first, other);
        return Decision::failure(head.seq, head.op, MOELINK_ERR_MISMATCH,
                                 fmt::format("the ranks called different things: rank {} {}, rank {} {}", first.rank,
                                             call_text(first),
                                             other.rank, call_text(other)));
    }
    if (no_memory) {
        return Decision::failure(head.seq, head.op, MOELINK_ERR_OUT_OF_MEMORY,
                                 fmt::format("rank 0 has no memory for the result of {}", call_text(first)));
    }
    std::memcpy(frame.data(), &head, sizeof head);
    return Decision(std::make_shared<Bytes>(std::move(frame)));
}

std::unique_ptr<Decision> Round::give_up(uint64_t seq, int rank, uint64_t waited_ns) {
    if (seq != seq_) return nullptr;
    std::vector<int> missing;
    for (int i = 0; i < size_; ++i) {
        if (!here_[static_cast<size_t>(i)]) missing.push_back(i);
    }
    std::string text = fmt::format("{}: rank {} waited {:.3f} s; {} of {} ranks did not come: {}", call_text(first_), rank,
                                   static_cast<double>(waited_ns) * 1e-9, missing.size(), size_, ranks_text(missing));
    auto decision = std::make_unique<Decision>(Decision::failure(seq, first_.op, MOELINK_ERR_TIMEOUT, text));
    next();
    return decision;
}

void Round::next() {
    ++seq_;
    arrived_ = 0;
    std::fill(here_.begin(), here_.end(), false);
    contradiction_ = false;
    no_memory_ = false;
    frame_ = {};
}

}  // namespace moelink
