// NIXL: agents that know each other's metadata, transfer requests. A thread of its own makes its progress, on both ends.
#include "eplb/network.hpp"

#include "base/log.hpp"
#include "driver/kept_signals.hpp"
#include "driver/nixl.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include <sodium.h>

namespace moelink::eplb {

namespace {

// Plugins differ in the fabric below: UCX, LIBFABRIC, ...
std::string backend_name() {
    const char *name = std::getenv("MOELINK_NIXL_BACKEND");
    return name != nullptr && *name != '\0' ? name : "UCX";
}

// Names of agents are one space for all jobs that meet.
std::string agent_name() {
    unsigned char bytes[16];
    char text[2 * sizeof bytes + 1];
    randombytes_buf(bytes, sizeof bytes);
    return std::string("moelink-") + sodium_bin2hex(text, sizeof text, bytes, sizeof bytes);
}

// What a list of NIXL's holds until the object goes.
class Regions {
public:
    explicit Regions(int memory) { check_nixl(nixl().create_regions(memory, &list_), "nixl_capi_create_reg_dlist"); }
    ~Regions() { nixl().destroy_regions(list_); }
    Regions(const Regions &) = delete;
    Regions &operator=(const Regions &) = delete;
    void add(const void *base, uint64_t bytes, uint64_t device) {
        check_nixl(nixl().add_region(list_, reinterpret_cast<uintptr_t>(base), bytes, device, nullptr, 0), "nixl_capi_reg_dlist_add_desc");
    }
    NixlRegions *get() const { return list_; }

private:
    NixlRegions *list_ = nullptr;
};

class Pieces {
public:
    Pieces(int memory, uint64_t base, uint64_t bytes, uint64_t device) {
        check_nixl(nixl().create_pieces(memory, &list_), "nixl_capi_create_xfer_dlist");
        if (const NixlStatus status = nixl().add_piece(list_, base, bytes, device); status != 0) {
            nixl().destroy_pieces(list_);
            check_nixl(status, "nixl_capi_xfer_dlist_add_desc");
        }
    }
    ~Pieces() { nixl().destroy_pieces(list_); }
    Pieces(const Pieces &) = delete;
    Pieces &operator=(const Pieces &) = delete;
    NixlPieces *get() const { return list_; }

private:
    NixlPieces *list_ = nullptr;
};

class NixlGet;
class NixlKey;
class NixlRegion;

class NixlNetwork final : public Network {
public:
    explicit NixlNetwork(const Device &device);
    ~NixlNetwork() override { close(); }

    void connect(int peer, const uint8_t *address, size_t bytes, Loss loss) override;
    std::string transports(int peer) const override { return peers_.count(peer) != 0 ? backend_text_ : "none"; }
    std::unique_ptr<NetworkKey> unlock(int peer, const uint8_t *key, size_t bytes) override;
    std::shared_ptr<NetworkMemory> share(void *base, uint64_t bytes) override;
    std::shared_ptr<NetworkMemory> land(void *base, uint64_t bytes) noexcept override;
    void progress() const override {}
    void close() noexcept override;

private:
    friend class NixlRegion;
    friend class NixlKey;
    friend class NixlGet;
    void make_backend();
    Bytes metadata(const Regions &regions) const;
    std::string load(const uint8_t *data, size_t bytes);
    bool is_registered(const void *base, uint64_t bytes) const;
    std::shared_ptr<NixlNetwork> self() { return std::static_pointer_cast<NixlNetwork>(shared_from_this()); }

    Device device_;
    const std::string backend_text_;
    const int memory_;
    const uint64_t device_number_;
    NixlAgent *agent_ = nullptr;
    NixlBackend *backend_ = nullptr;
    // What is known of a peer's agent. NIXL cannot forget a key by itself, so that agent is met anew once a key has gone: its memory may
    // have been registered again, under another key.
    struct Peer {
        std::string name;
        Bytes address;
        std::set<const NixlKey *> keys;
        bool stale = false;
    };
    void meet(Peer &peer);
    std::shared_ptr<NixlRegion> register_once(void *base, uint64_t bytes);

    std::map<int, Peer> peers_;
    std::map<std::pair<uintptr_t, uint64_t>, std::weak_ptr<NixlRegion>> registered_;  // by base and bytes, as NIXL tells them apart; none expired
    std::set<NixlGet *> gets_;  // under way
};

// Registered until it goes.
class NixlRegion final : public NetworkMemory {
public:
    NixlRegion(std::shared_ptr<NixlNetwork> network, void *base, uint64_t bytes);
    ~NixlRegion() override;
    // Peers may read it from now on.
    void share();

private:
    std::shared_ptr<NixlNetwork> network_;
    const std::pair<uintptr_t, uint64_t> range_;
    Regions regions_;
};

class NixlKey final : public NetworkKey {
public:
    NixlKey(std::shared_ptr<NixlNetwork> network, int peer, uint64_t device, Bytes metadata);
    ~NixlKey() override;
    std::unique_ptr<NetworkGet> get(void *to, uint64_t from, uint64_t bytes) override;
    const Bytes &metadata() const { return metadata_; }

private:
    friend class NixlGet;
    std::shared_ptr<NixlNetwork> network_;
    const int peer_;
    const uint64_t device_;  // the peer's number of it
    const Bytes metadata_;
};

class NixlGet final : public NetworkGet {
public:
    NixlGet(const NixlKey &key, void *to, uint64_t from, uint64_t bytes);
    ~NixlGet() override { forget(); }
    bool passed() override;
    void forget() noexcept;

private:
    std::shared_ptr<NixlNetwork> network_;
    const int peer_;
    std::shared_ptr<NetworkMemory> landing_;  // NULL where it lands in what was registered before
    NixlRequest *request_ = nullptr;
};

NixlNetwork::NixlNetwork(const Device &device)
    : device_(device), backend_text_(backend_name()), memory_(device.on_cuda() ? nixl_vram : nixl_dram),
      device_number_(static_cast<uint64_t>(device.number())) {
    const Nixl &table = nixl();
    name_ = "NIXL";
    NixlAgentConfig config = {};
    config.progress_thread = true;  // else a read ends only when the peer asks for its own
    config.workers = 1;
    DeviceGuard guard(device_);
    const KeptSignals signals;
    check_nixl(table.create_agent(agent_name().c_str(), &config, &agent_), "nixl_capi_create_configured_agent");
    try {
        make_backend();
        address_ = metadata(Regions(memory_));
    } catch (...) {
        close();
        throw;
    }
}

void NixlNetwork::make_backend() {
    const Nixl &table = nixl();
    NixlMemories *memories = nullptr;
    NixlParams *params = nullptr;
    if (table.plugin_params(agent_, backend_text_.c_str(), &memories, &params) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "{} has no plugin {} (NIXL_PLUGIN_DIR names the folder of plugins)", table.file, backend_text_);
    }
    const NixlStatus made = table.create_backend(agent_, backend_text_.c_str(), params, &backend_);
    table.destroy_memories(memories);
    table.destroy_params(params);
    check_nixl(made, "nixl_capi_create_backend");
}

void NixlNetwork::close() noexcept {
    if (agent_ == nullptr) return;
    try {
        const Nixl &table = nixl();
        DeviceGuard guard(device_);
        while (!gets_.empty()) (*gets_.begin())->forget();
        for (const auto &[rank, peer] : peers_) table.drop_metadata(agent_, peer.name.c_str());
        if (backend_ != nullptr) table.destroy_backend(backend_);
        check_nixl(table.destroy_agent(agent_), "nixl_capi_destroy_agent");
    } catch (const std::exception &error) {
        log(MOELINK_LOG_WARN, "NIXL was not given up: {}", error.what());
    }
    peers_.clear();
    backend_ = nullptr;
    agent_ = nullptr;
}

Bytes NixlNetwork::metadata(const Regions &regions) const {
    void *data = nullptr;
    size_t bytes = 0;
    check_nixl(nixl().local_metadata(agent_, regions.get(), &data, &bytes, nullptr), "nixl_capi_get_local_partial_md");
    const std::unique_ptr<void, void (*)(void *)> freed(data, &std::free);
    return Bytes(static_cast<const uint8_t *>(data), static_cast<const uint8_t *>(data) + bytes);
}

// Gives the name of the agent whose metadata they are.
std::string NixlNetwork::load(const uint8_t *data, size_t bytes) {
    char *name = nullptr;
    check_nixl(nixl().load_metadata(agent_, data, bytes, &name), "nixl_capi_load_remote_md");
    const std::unique_ptr<char, void (*)(void *)> freed(name, &std::free);
    return name;
}

void NixlNetwork::connect(int peer, const uint8_t *address, size_t bytes, Loss) {
    DeviceGuard guard(device_);
    const std::string name = load(address, bytes);
    for (const auto &[rank, other] : peers_) {
        if (other.name == name) fail(MOELINK_ERR_PROTOCOL, "ranks {} and {} have one agent of NIXL", rank, peer);
    }
    peers_[peer] = Peer{name, Bytes(address, address + bytes), {}, false};
    check_nixl(nixl().connect(agent_, name.c_str(), nullptr), "nixl_capi_agent_make_connection");
}

// Nothing of it is under way: keys go and come between rounds.
void NixlNetwork::meet(Peer &peer) {
    if (!peer.stale) return;
    nixl().drop_metadata(agent_, peer.name.c_str());
    load(peer.address.data(), peer.address.size());
    check_nixl(nixl().connect(agent_, peer.name.c_str(), nullptr), "nixl_capi_agent_make_connection");
    for (const NixlKey *key : peer.keys) load(key->metadata().data(), key->metadata().size());
    peer.stale = false;
}

std::shared_ptr<NixlRegion> NixlNetwork::register_once(void *base, uint64_t bytes) {
    const std::pair<uintptr_t, uint64_t> range(reinterpret_cast<uintptr_t>(base), bytes);
    if (auto found = registered_.find(range); found != registered_.end()) return found->second.lock();
    auto region = std::make_shared<NixlRegion>(self(), base, bytes);
    registered_[range] = region;
    return region;
}

std::shared_ptr<NetworkMemory> NixlNetwork::share(void *base, uint64_t bytes) {
    std::shared_ptr<NixlRegion> region = register_once(base, bytes);
    region->share();
    return region;
}

std::shared_ptr<NetworkMemory> NixlNetwork::land(void *base, uint64_t bytes) noexcept {
    try {
        return register_once(base, bytes);
    } catch (const std::exception &error) {
        log(MOELINK_LOG_WARN, "each read registers where it lands: {}", error.what());
        return nullptr;
    }
}

bool NixlNetwork::is_registered(const void *base, uint64_t bytes) const {
    const auto from = reinterpret_cast<uintptr_t>(base);
    return std::any_of(registered_.begin(), registered_.upper_bound({from, UINT64_MAX}), [&](const auto &region) {
        const auto &[start, size] = region.first;
        return from - start <= size && bytes <= size - (from - start);
    });
}

NixlRegion::NixlRegion(std::shared_ptr<NixlNetwork> network, void *base, uint64_t bytes)
    : network_(std::move(network)), range_(reinterpret_cast<uintptr_t>(base), bytes), regions_(network_->memory_) {
    if (network_->agent_ == nullptr) fail(MOELINK_ERR_INVALID_STATE, "NIXL was given up");
    DeviceGuard guard(network_->device_);
    regions_.add(base, bytes, network_->device_number_);
    check_nixl(nixl().register_memory(network_->agent_, regions_.get(), nullptr), "nixl_capi_register_mem");
}

void NixlRegion::share() {
    if (!key_.empty()) return;
    DeviceGuard guard(network_->device_);
    const Bytes metadata = network_->metadata(regions_);
    const auto *number = reinterpret_cast<const uint8_t *>(&network_->device_number_);
    key_.assign(number, number + sizeof network_->device_number_);
    key_.insert(key_.end(), metadata.begin(), metadata.end());
}

NixlRegion::~NixlRegion() {
    network_->registered_.erase(range_);
    if (network_->agent_ == nullptr) return;
    try {
        DeviceGuard guard(network_->device_);
        check_nixl(nixl().deregister_memory(network_->agent_, regions_.get(), nullptr), "nixl_capi_deregister_mem");
    } catch (const Error &error) {
        log(MOELINK_LOG_WARN, "memory was not taken back from NIXL: {}", error.text());
    }
}

std::unique_ptr<NetworkKey> NixlNetwork::unlock(int peer, const uint8_t *key, size_t bytes) {
    auto found = peers_.find(peer);
    if (found == peers_.end()) fail(MOELINK_ERR_INVALID_STATE, "NIXL is not connected to rank {}", peer);
    uint64_t number = 0;
    if (bytes <= sizeof number) fail(MOELINK_ERR_PROTOCOL, "rank {} gives a key of {} bytes", peer, bytes);
    std::memcpy(&number, key, sizeof number);
    DeviceGuard guard(device_);
    meet(found->second);
    const std::string name = load(key + sizeof number, bytes - sizeof number);
    if (name != found->second.name) fail(MOELINK_ERR_PROTOCOL, "rank {} gives a key to the memory of another agent", peer);
    return std::make_unique<NixlKey>(self(), peer, number, Bytes(key + sizeof number, key + bytes));
}

NixlKey::NixlKey(std::shared_ptr<NixlNetwork> network, int peer, uint64_t device, Bytes metadata)
    : network_(std::move(network)), peer_(peer), device_(device), metadata_(std::move(metadata)) {
    network_->peers_.at(peer).keys.insert(this);
}

NixlKey::~NixlKey() {
    auto found = network_->peers_.find(peer_);
    if (found == network_->peers_.end()) return;  // it was closed
    found->second.keys.erase(this);
    found->second.stale = true;
}

std::unique_ptr<NetworkGet> NixlKey::get(void *to, uint64_t from, uint64_t bytes) {
    return std::make_unique<NixlGet>(*this, to, from, bytes);
}

NixlGet::NixlGet(const NixlKey &key, void *to, uint64_t from, uint64_t bytes) : network_(key.network_), peer_(key.peer_) {
    NixlNetwork &network = *network_;
    if (network.agent_ == nullptr) fail(MOELINK_ERR_PEER_UNREACHABLE, "NIXL was given up before it read from rank {}", peer_);
    const Nixl &table = nixl();
    DeviceGuard guard(network.device_);
    NixlNetwork::Peer &peer = network.peers_.at(peer_);
    network.meet(peer);
    if (!network.is_registered(to, bytes)) landing_ = network.register_once(to, bytes);
    const Pieces local(network.memory_, reinterpret_cast<uintptr_t>(to), bytes, network.device_number_);
    const Pieces remote(network.memory_, from, bytes, key.device_);
    check_nixl(table.create_request(network.agent_, nixl_read, local.get(), remote.get(), peer.name.c_str(), &request_, nullptr),
               "nixl_capi_create_xfer_req");
    network.gets_.insert(this);
    const NixlStatus posted = table.post_request(network.agent_, request_, nullptr);
    if (posted == nixl_in_progress) return;
    forget();
    if (posted != 0) fail(MOELINK_ERR_PEER_UNREACHABLE, "NIXL does not read from rank {}: status {}", peer_, posted);
}

// Ends it, come or not.
void NixlGet::forget() noexcept {
    if (request_ == nullptr) return;
    const Nixl &table = nixl();
    if (table.release_request(network_->agent_, request_) == 0) {
        table.destroy_request(request_);
    } else {
        log(MOELINK_LOG_WARN, "NIXL did not end a read");
    }
    network_->gets_.erase(this);
    request_ = nullptr;
    landing_.reset();
}

bool NixlGet::passed() {
    if (request_ == nullptr) return true;
    const NixlStatus status = nixl().request_status(network_->agent_, request_);
    if (status == nixl_in_progress) return false;
    forget();
    if (status != 0) fail(MOELINK_ERR_PEER_UNREACHABLE, "NIXL did not read from rank {}: status {}", peer_, status);
    return true;
}

std::shared_ptr<Network> make_nixl(const Device &device, int) { return std::make_shared<NixlNetwork>(device); }

}  // namespace

const NetworkKind nixl_network_kind = {"NIXL", &make_nixl};

}  // namespace moelink::eplb
