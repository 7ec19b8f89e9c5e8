// Reads of one round over a network: experts cut into pieces, a bounded number of them under way.
#pragma once

#include "eplb/network_peers.hpp"

#include <deque>

namespace moelink::eplb {

// Nothing of these lands any more. Throws DEVICE when that could only be had by giving the network up.
void end_gets(Network &network, std::vector<std::unique_ptr<NetworkGet>> gets);

class NetworkReads {
public:
    // Nothing is read before `free` has passed: a network knows no stream, and rows of before may still be copied from where it lands.
    NetworkReads(Network &network, uint64_t piece_bytes, Mark free) : network_(network), piece_bytes_(piece_bytes), free_(std::move(free)) {}

    // The rows of a slot of a peer that is ready.
    void fetch(Transfer &receive, const NetworkLayer::Rows &rows);
    // Throws LostRound.
    Busy poll();
    // Nothing new is begun.
    void give_up() noexcept { waiting_.clear(); }
    // Nothing lands any more. Throws DEVICE when that could only be had by giving the network up.
    void end();

private:
    // Where a fetch goes on.
    struct Fetch {
        Transfer *receive;
        const NetworkLayer::Rows *rows;
        size_t tensor = 0;
        uint64_t row = 0;
        uint64_t offset = 0;   // [bytes] in the row
        uint64_t under_way = 0;
        bool all_begun = false;
    };
    struct Piece {
        std::unique_ptr<NetworkGet> get;
        Fetch *fetch;
    };
    uint64_t begin_piece(Fetch &fetch);
    void collect();

    Network &network_;
    const uint64_t piece_bytes_;
    const Mark free_;
    std::deque<Fetch> fetches_;    // a deque: its elements stay where they are
    std::deque<Fetch *> waiting_;  // those with pieces to begin, in turn
    std::vector<Piece> flying_;
};

}  // namespace moelink::eplb
