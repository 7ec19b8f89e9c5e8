#include "eplb/transfer_rounds.hpp"

#include <algorithm>
#include <cstddef>

namespace moelink::eplb {

namespace {

class Colouring {
public:
    Colouring(std::span<const Endpoints> edges, int ranks) : edges_(edges), colours_(edges.size(), -1) {
        std::vector<int> sends(size_t(ranks), 0), receives(size_t(ranks), 0);
        for (const Endpoints &edge : edges) {
            rounds_ = std::max({rounds_, ++sends[size_t(edge.from)], ++receives[size_t(edge.to)]});
        }
        sender_.assign(size_t(ranks) * size_t(rounds_), -1);
        receiver_ = sender_;
    }

    void add(int edge) {
        const Endpoints &ends = edges_[size_t(edge)];
        int sends = open(sender_, ends.from);
        int receives = open(receiver_, ends.to);
        if (sends != receives) turn(ends.to, sends, receives);
        set(edge, sends);
    }

    std::vector<int> take() { return std::move(colours_); }

private:
    int &at(std::vector<int> &side, int rank, int colour) { return side[size_t(rank) * size_t(rounds_) + size_t(colour)]; }

    int open(std::vector<int> &side, int rank) {
        int colour = 0;
        while (at(side, rank, colour) >= 0) ++colour;
        return colour;
    }

    void set(int edge, int colour) {
        colours_[size_t(edge)] = colour;
        at(sender_, edges_[size_t(edge)].from, colour) = edge;
        at(receiver_, edges_[size_t(edge)].to, colour) = edge;
    }

    // Makes `first` open at the receiver by exchanging both colours on the path from there. The path cannot come to the sender
    // of the edge that is to be added: senders are entered by `first`, which is open there.
    void turn(int receiver, int first, int second) {
        std::vector<int> path;
        for (int edge = at(receiver_, receiver, first); edge >= 0;) {
            path.push_back(edge);
            bool at_sender = path.size() % 2 == 1;
            const Endpoints &ends = edges_[size_t(edge)];
            edge = at_sender ? at(sender_, ends.from, second) : at(receiver_, ends.to, first);
        }
        for (int edge : path) {
            at(sender_, edges_[size_t(edge)].from, colours_[size_t(edge)]) = -1;
            at(receiver_, edges_[size_t(edge)].to, colours_[size_t(edge)]) = -1;
        }
        for (int edge : path) set(edge, colours_[size_t(edge)] == first ? second : first);
    }

    std::span<const Endpoints> edges_;
    std::vector<int> colours_;
    std::vector<int> sender_, receiver_;  // [ranks, rounds] the edge of that colour, or -1
    int rounds_ = 0;
};

}  // namespace

std::vector<int> colour_rounds(std::span<const Endpoints> transfers, int ranks) {
    Colouring colouring(transfers, ranks);
    for (size_t edge = 0; edge < transfers.size(); ++edge) colouring.add(int(edge));
    return colouring.take();
}

}  // namespace moelink::eplb
