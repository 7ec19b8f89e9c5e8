// FIFOs of bytes between ranks on the host: each has one writer and one reader. A rank moves all of its FIFOs on in turn, whatever has
// room or has come, and sleeps on its bell when none does; so it never blocks on one while another could move.
#pragma once

#include "../two_sided.hpp"
#include "signal.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace moelink::kernels::host {

// The writing end of the FIFO to another rank.
class FifoOut {
public:
    FifoOut(const FifoWorkspace &fifos, int32_t other);
    // Copies what there is room for; how much.
    size_t put(const unsigned char *from, size_t bytes);
    // Shows the other rank what was put.
    void publish();

private:
    unsigned char *ring_;
    uint64_t size_;
    uint64_t *written_at_;  // there
    uint64_t *taken_at_;    // here
    uint32_t *bell_;
    uint64_t written_, published_;
};

// The reading end of the FIFO from another rank.
class FifoIn {
public:
    FifoIn(const FifoWorkspace &fifos, int32_t other);
    size_t get(unsigned char *to, size_t bytes);
    // Gives the other rank the room of what was got.
    void release();

private:
    const unsigned char *ring_;
    uint64_t size_;
    uint64_t *written_at_;  // here
    uint64_t *taken_at_;    // there
    uint32_t *bell_;
    uint64_t taken_, released_;
};

// What travels to another rank, piece by piece.
class Outgoing {
public:
    virtual ~Outgoing() = default;
    // The next piece; false: there is none. A piece stays as it is until the next call.
    virtual bool next(const unsigned char **at, size_t *bytes) = 0;
};

// Where what comes from another rank goes, piece by piece.
class Incoming {
public:
    enum class Next { piece, later, end, mismatch };
    virtual ~Incoming() = default;
    // Called when the piece before is complete, and again after `later`.
    virtual Next next(unsigned char **at, size_t *bytes) = 0;
};

// One call's traffic. work: what else there is to do, called in every turn; true when it did something.
class Traffic {
public:
    explicit Traffic(const FifoWorkspace &fifos) : fifos_(fifos) {}
    void add(int32_t other, std::unique_ptr<Outgoing> out, std::unique_ptr<Incoming> in);
    // Returns when all has gone and come, and work has nothing left.
    Fault run(const std::function<bool()> &work, Phase phase, const Watch &watch);

private:
    struct Peer {
        int32_t rank;
        FifoOut out;
        FifoIn in;
        std::unique_ptr<Outgoing> outgoing;
        std::unique_ptr<Incoming> incoming;
        const unsigned char *from = nullptr;
        size_t from_left = 0;
        unsigned char *to = nullptr;
        size_t to_left = 0;
        bool sent = false, received = false, heard = false, later = false;
    };
    bool send(Peer &peer);
    bool receive(Peer &peer, Fault *fault);
    bool turn(const std::function<bool()> &work, Fault *fault);
    bool done() const;
    // Whom the rank waits for.
    int32_t awaited() const;

    const FifoWorkspace &fifos_;
    std::vector<Peer> peers_;
};

// What every stream begins with.
struct FifoHeader {
    uint32_t epoch;
    uint32_t shape;
    int32_t rows;
    int32_t tokens;
};

// The row of the received rows that a source's first is.
inline int64_t first_row(const FifoWorkspace &fifos, int32_t source) {
    return fifos.packed ? fifos.tables.recv_offsets[source] : int64_t{source} * fifos.workspace.capacity;
}

}  // namespace moelink::kernels::host
