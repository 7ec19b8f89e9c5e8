// The place where ranks that share a unique id find each other: each says where it listens, and when all have come each is told
// about all others.
#pragma once

#include "group/hub.hpp"
#include "group/unique_id.hpp"

#include <memory>
#include <vector>

#include <unistd.h>

namespace moelink {

enum RendezvousFrame : uint32_t {
    frame_join = 1,    // rank -> server: Join
    frame_table = 2,   // server -> rank: Endpoint of every rank
    frame_refuse = 3,  // server -> rank: Refusal, then the text
};

struct Join {
    int32_t rank;
    int32_t size;
    int32_t device;
    int32_t process;
    uint64_t left_ns;  // until the rank's deadline
    Endpoint endpoint;
    uint8_t reserved[2];
};
static_assert(sizeof(Join) == 200);

struct Refusal {
    int32_t status;
    uint32_t reserved;
};

class Rendezvous {
public:
    Rendezvous(const char *interface_or_null, int size);
    ~Rendezvous();

    moelink_unique_id id() const { return encode(id_); }
    uint64_t strangers() const { return hub_.strangers(); }

private:
    class Guest;
    void arrived(std::shared_ptr<Link> link);
    void joined(Guest &guest);
    void left(Guest &guest);
    void expired(Guest &guest);
    void complete();
    std::vector<int> missing() const;

    UniqueId id_;
    Hub hub_{false};
    // All below on the hub's thread.
    std::vector<std::shared_ptr<Guest>> strange_;   // connected, not yet joined or already refused
    std::vector<std::shared_ptr<Guest>> by_rank_;
    std::vector<int32_t> processes_;                // of the ranks, kept when their connections are gone
    bool complete_ = false;
};

}  // namespace moelink

struct moelink_rendezvous {
    moelink_rendezvous(const char *interface_or_null, int size)
        : object(std::make_unique<moelink::Rendezvous>(interface_or_null, size)) {}
    std::unique_ptr<moelink::Rendezvous> object;
    pid_t process = getpid();
};
