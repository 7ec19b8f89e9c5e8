// UCX as one rank uses it: its own address and registered memory, endpoints to other ranks, gets from their memory. It knows no
// group: what peers tell reaches it through connections that are authenticated, since UCX believes what it is given.
#pragma once

#include "group/message.hpp"
#include "moe/device_memory.hpp"

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

struct ucp_context;
struct ucp_worker;
struct ucp_ep;
struct ucp_rkey;
struct ucp_mem;

namespace moelink::eplb {

// All calls from one thread at a time; each is local and does not wait.
class UcxWorker {
public:
    // Throws Error with the reason when UCX is not here or does not know the device's memory.
    UcxWorker(const Device &device, int ranks);
    ~UcxWorker();
    UcxWorker(const UcxWorker &) = delete;
    UcxWorker &operator=(const UcxWorker &) = delete;

    const std::string &version() const { return version_; }
    const Bytes &address() const { return address_; }

    // To be told when a peer is lost, UCX must leave out transports that cannot tell, those inside a host among them. Both ranks
    // say the same.
    enum class Loss { told, not_told };
    void connect(int peer, const uint8_t *address, Loss loss);
    // "tcp/eth0.0, cma/memory.0": those that UCX has chosen for this peer.
    std::string transports(int peer) const;

    // Advances what is under way.
    void progress() const;
    // After this nothing is read any more: what was under way has come or never will. Endpoints and keys are gone.
    void close() noexcept;

private:
    friend class UcxMemory;
    friend class UcxKey;
    friend class UcxGet;
    struct Peer;
    void describe_memory() const;

    Device device_;
    std::string version_;
    ucp_context *context_ = nullptr;
    ucp_worker *worker_ = nullptr;
    Bytes address_;
    std::map<int, std::unique_ptr<Peer>> peers_;
    std::set<ucp_rkey *> keys_;
};

// Memory of this rank that peers may read.
class UcxMemory {
public:
    UcxMemory(std::shared_ptr<UcxWorker> worker, void *base, uint64_t bytes);
    ~UcxMemory();
    UcxMemory(const UcxMemory &) = delete;
    UcxMemory &operator=(const UcxMemory &) = delete;
    // What a peer makes a UcxKey of.
    const Bytes &key() const { return key_; }

private:
    std::shared_ptr<UcxWorker> worker_;
    ucp_mem *memory_ = nullptr;
    Bytes key_;
};

// The right to read a peer's memory.
class UcxKey {
public:
    UcxKey(std::shared_ptr<UcxWorker> worker, int peer, const uint8_t *key);
    ~UcxKey();
    UcxKey(const UcxKey &) = delete;
    UcxKey &operator=(const UcxKey &) = delete;

private:
    friend class UcxGet;
    std::shared_ptr<UcxWorker> worker_;
    int peer_;
    ucp_rkey *key_ = nullptr;
};

// One read. What it lands in must stay until it has passed or the worker is closed.
class UcxGet {
public:
    UcxGet(const UcxKey &key, void *to, uint64_t from, uint64_t bytes);
    UcxGet(UcxGet &&other) noexcept : worker_(other.worker_), peer_(other.peer_), request_(std::exchange(other.request_, nullptr)) {}
    UcxGet &operator=(UcxGet &&other) noexcept;
    ~UcxGet();
    // Throws PEER_UNREACHABLE with UCX's reason, and then it is over too.
    bool passed();

private:
    void forget() noexcept;
    UcxWorker *worker_;
    int peer_;
    void *request_ = nullptr;
};

}  // namespace moelink::eplb
