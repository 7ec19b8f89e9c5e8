#include "eplb/network_reads.hpp"

#include "eplb/comm_round.hpp"

#include <algorithm>
#include <thread>

namespace moelink::eplb {

namespace {

constexpr size_t most_flying = 64;
// Begun in one call: inside a host a read is a copy that is done at once, and peers are to be served in between.
constexpr uint64_t most_begun = 4 << 20;
constexpr uint64_t patience_ns = 1'000'000'000;

// Whatever came of it: its round has failed already.
bool is_over(const std::unique_ptr<NetworkGet> &get) noexcept {
    try {
        return get->passed();
    } catch (const Error &) {
        return true;
    }
}

}  // namespace

void end_gets(Network &network, std::vector<std::unique_ptr<NetworkGet>> gets) {
    const Deadline patience = Deadline::after_ns(patience_ns);
    while (!gets.empty() && !patience.passed()) {
        network.progress();
        std::erase_if(gets, is_over);
        if (!gets.empty()) std::this_thread::yield();
    }
    if (gets.empty()) return;
    network.close();
    fail(MOELINK_ERR_DEVICE, "reads over {} did not end, so it was given up; reinit brings it back", network.name());
}

void NetworkReads::fetch(Transfer &receive, const NetworkLayer::Rows &rows) {
    receive.link = MOELINK_EPLB_LINK_NETWORK;
    fetches_.push_back(Fetch{&receive, &rows});
    waiting_.push_back(&fetches_.back());
}

// Returns its size.
uint64_t NetworkReads::begin_piece(Fetch &fetch) {
    const size_t i = fetch.tensor;
    const Strip &to = fetch.receive->rows[i];
    const NetworkLayer::Rows &rows = *fetch.rows;
    // Rows without gaps on both sides are one row.
    const bool dense = to.row_stride == to.row_bytes && rows.row_stride[i] == to.row_bytes;
    const uint64_t row_bytes = dense ? to.bytes() : to.row_bytes;
    const uint64_t row_count = dense ? 1 : to.rows;
    const uint64_t bytes = std::min(piece_bytes_, row_bytes - fetch.offset);
    const uint64_t from = rows.base[i] + static_cast<uint64_t>(fetch.receive->slot) * rows.slot_stride[i] +
                          fetch.row * rows.row_stride[i] + fetch.offset;
    flying_.push_back(Piece{rows.keys[i]->get(to.data + fetch.row * to.row_stride + fetch.offset, from, bytes), &fetch});
    ++fetch.under_way;
    fetch.offset += bytes;
    if (fetch.offset == row_bytes) {
        fetch.offset = 0;
        ++fetch.row;
    }
    if (fetch.row == row_count) {
        fetch.row = 0;
        ++fetch.tensor;
    }
    fetch.all_begun = fetch.tensor == fetch.receive->rows.size();
    return bytes;
}

void NetworkReads::collect() {
    for (size_t i = 0; i < flying_.size();) {
        if (!flying_[i].get->passed()) {
            ++i;
            continue;
        }
        Fetch &fetch = *flying_[i].fetch;
        --fetch.under_way;
        if (fetch.all_begun && fetch.under_way == 0) fetch.receive->landed = true;
        flying_[i] = std::move(flying_.back());
        flying_.pop_back();
    }
}

Busy NetworkReads::poll() {
    if (fetches_.empty()) return Busy::no;
    if (flying_.empty() && !free_.passed()) return Busy::waiting;
    try {
        uint64_t begun = 0;
        while (!waiting_.empty() && flying_.size() < most_flying && begun < most_begun) {
            Fetch &fetch = *waiting_.front();
            begun += begin_piece(fetch);
            waiting_.pop_front();
            if (!fetch.all_begun) waiting_.push_back(&fetch);
        }
        network_.progress();
        collect();
    } catch (const Error &error) {
        throw LostRound(error.status(), error.text());
    }
    if (!waiting_.empty() && flying_.size() < most_flying) return Busy::working;
    return flying_.empty() ? Busy::no : Busy::waiting;
}

void NetworkReads::end() {
    waiting_.clear();
    std::vector<std::unique_ptr<NetworkGet>> gets;
    for (Piece &piece : flying_) gets.push_back(std::move(piece.get));
    flying_.clear();
    fetches_.clear();
    end_gets(network_, std::move(gets));
}

}  // namespace moelink::eplb
