// How the ranks of the fake NCCL reach each other: one shared memory segment a communicator, with a small ring of bytes for
// each ordered pair of ranks. Whether ranks are threads or processes makes no difference.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace fake_nccl {

// One message, sent or received. The peer may be the rank itself.
struct Transfer {
    bool send = false;
    const unsigned char *from = nullptr;  // of a send
    unsigned char *to = nullptr;          // of a receive
    uint64_t bytes = 0;
    int peer = 0;
    uint64_t done = 0;  // of header and bytes together
};

enum class Progress { none, some, all, mismatch };

class Wire {
public:
    // Maps the segment of that name, the first to come making it. Its name is gone when the last rank has it.
    Wire(const std::string &name, int rank, int ranks);
    Wire(const Wire &) = delete;
    Wire &operator=(const Wire &) = delete;
    ~Wire();

    bool all_joined() const;
    // Moves what can be moved now. Messages between two ranks keep their order.
    Progress advance(std::vector<Transfer> &transfers);
    // Counts what ranks have done; wait() sleeps while the count is still `seen`, and not for long.
    uint32_t bell() const;
    void wait(uint32_t seen) const;

private:
    struct Header;
    struct Ring;
    Ring &ring(int from, int to) const;
    void strike() const;

    std::string name_;
    int rank_;
    int ranks_;
    uint64_t bytes_;
    Header *header_;
};

}  // namespace fake_nccl
