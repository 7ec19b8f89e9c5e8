// A library that reads memory of other processes, as one rank uses it: its own address and registered memory, keys to other ranks'
// memory, gets from it. It knows no group: what peers tell reaches it through connections that are authenticated, since such a
// library believes what it is given.
#pragma once

#include "group/message.hpp"
#include "moe/device_memory.hpp"

#include <memory>
#include <string>

namespace moelink::eplb {

// One read. What it lands in must stay until it has passed or its network is closed.
class NetworkGet {
public:
    virtual ~NetworkGet() = default;
    // Throws PEER_UNREACHABLE with the library's reason, and then it is over too.
    virtual bool passed() = 0;
};

// The right to read a peer's memory.
class NetworkKey {
public:
    virtual ~NetworkKey() = default;
    virtual std::unique_ptr<NetworkGet> get(void *to, uint64_t from, uint64_t bytes) = 0;
};

// Memory of this rank that the library has registered.
class NetworkMemory {
public:
    virtual ~NetworkMemory() = default;
    // What a peer's network makes a key of.
    const Bytes &key() const { return key_; }

protected:
    Bytes key_;
};

// All calls, those on its memory, keys and gets among them, from one thread at a time; each is local and does not wait. What it gave
// may outlive the last other reference to it.
class Network : public std::enable_shared_from_this<Network> {
public:
    virtual ~Network() = default;
    // "UCX 1.22.0"
    const std::string &name() const { return name_; }
    const Bytes &address() const { return address_; }

    // To be told when a peer is lost, a library may have to leave out transports that cannot tell, those inside a host among them. Both
    // ranks say the same.
    enum class Loss { told, not_told };
    virtual void connect(int peer, const uint8_t *address, size_t bytes, Loss loss) = 0;
    // "tcp/eth0.0, cma/memory.0": those that are used for this peer.
    virtual std::string transports(int peer) const = 0;

    virtual std::unique_ptr<NetworkKey> unlock(int peer, const uint8_t *key, size_t bytes) = 0;
    // Memory that peers may read. Asked again for the same memory it may give the same object.
    virtual std::shared_ptr<NetworkMemory> share(void *base, uint64_t bytes) = 0;
    // Memory that many gets will land in; NULL where that saves nothing, or cannot be.
    virtual std::shared_ptr<NetworkMemory> land(void *base, uint64_t bytes) noexcept = 0;

    // Advances what is under way.
    virtual void progress() const = 0;
    // After this nothing is read any more: what was under way has come or never will. Keys are of no use.
    virtual void close() noexcept = 0;

protected:
    std::string name_;
    Bytes address_;
};

// What a library is called, and how its network is made: throws Error with the reason when it is not here or does not know the
// device's memory.
struct NetworkKind {
    const char *name;
    std::shared_ptr<Network> (*make)(const Device &device, int ranks);
};
extern const NetworkKind ucx_network_kind;
extern const NetworkKind nixl_network_kind;

}  // namespace moelink::eplb
