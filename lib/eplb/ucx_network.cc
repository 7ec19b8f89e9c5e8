// UCX: endpoints, registered memory, gets. It is told of progress by the ranks themselves.
#include "eplb/network.hpp"

#include "base/log.hpp"
#include "driver/ucx.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

namespace moelink::eplb {

namespace {

#if MOELINK_UCX

// Larger ones are no address or key of any release.
constexpr size_t most_address = 65536;
constexpr size_t most_key = 4096;

std::string text_of(ucs_status_t status) { return ucx().status_string(status); }

class UcxNetwork final : public Network {
public:
    UcxNetwork(const Device &device, int ranks);
    ~UcxNetwork() override;

    void connect(int peer, const uint8_t *address, size_t bytes, Loss loss) override;
    std::string transports(int peer) const override;
    std::unique_ptr<NetworkKey> unlock(int peer, const uint8_t *key, size_t bytes) override;
    std::shared_ptr<NetworkMemory> share(void *base, uint64_t bytes) override;
    std::shared_ptr<NetworkMemory> land(void *, uint64_t) noexcept override { return nullptr; }
    void progress() const override;
    void close() noexcept override;

private:
    friend class UcxMemory;
    friend class UcxKey;
    friend class UcxGet;
    struct Peer {
        ucp_ep_h endpoint = nullptr;
        ucs_status_t lost = UCS_OK;
    };
    void describe_memory() const;
    std::shared_ptr<UcxNetwork> self() { return std::static_pointer_cast<UcxNetwork>(shared_from_this()); }

    Device device_;
    ucp_context_h context_ = nullptr;
    ucp_worker_h worker_ = nullptr;
    std::map<int, std::unique_ptr<Peer>> peers_;
    std::set<ucp_rkey_h> keys_;
};

class UcxMemory final : public NetworkMemory {
public:
    UcxMemory(std::shared_ptr<UcxNetwork> network, void *base, uint64_t bytes);
    ~UcxMemory() override;

private:
    std::shared_ptr<UcxNetwork> network_;
    ucp_mem_h memory_ = nullptr;
};

class UcxKey final : public NetworkKey {
public:
    UcxKey(std::shared_ptr<UcxNetwork> network, int peer, const uint8_t *key);
    ~UcxKey() override;
    std::unique_ptr<NetworkGet> get(void *to, uint64_t from, uint64_t bytes) override;

private:
    friend class UcxGet;
    std::shared_ptr<UcxNetwork> network_;
    int peer_;
    ucp_rkey_h key_ = nullptr;
};

class UcxGet final : public NetworkGet {
public:
    UcxGet(const UcxKey &key, void *to, uint64_t from, uint64_t bytes);
    ~UcxGet() override { forget(); }
    bool passed() override;

private:
    void forget() noexcept;
    std::shared_ptr<UcxNetwork> network_;
    int peer_;
    void *request_ = nullptr;
};

UcxNetwork::UcxNetwork(const Device &device, int ranks) : device_(device) {
    const Ucx &table = ucx();
    name_ = std::string("UCX ") + table.version_string();
    DeviceGuard guard(device_);
    ucp_config_t *config = nullptr;
    check_ucx(table.config_read(nullptr, nullptr, &config), "ucp_config_read");
    ucp_params_t params = {};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
    params.features = UCP_FEATURE_RMA;
    params.estimated_num_eps = static_cast<size_t>(ranks);
    const ucs_status_t made = table.init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
    table.config_release(config);
    check_ucx(made, "ucp_init");
    try {
        describe_memory();
        ucp_worker_params_t worker = {};
        worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
        worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
        check_ucx(table.worker_create(context_, &worker, &worker_), "ucp_worker_create");
        ucp_address_t *address = nullptr;
        size_t bytes = 0;
        check_ucx(table.worker_get_address(worker_, &address, &bytes), "ucp_worker_get_address");
        const auto *at = reinterpret_cast<const uint8_t *>(address);
        address_.assign(at, at + bytes);
        table.worker_release_address(worker_, address);
        if (bytes == 0 || bytes > most_address) fail(MOELINK_ERR_INTERNAL, "UCX gives an address of {} bytes", bytes);
    } catch (...) {
        close();
        table.cleanup(context_);
        throw;
    }
}

UcxNetwork::~UcxNetwork() {
    close();
    ucx().cleanup(context_);
}

void UcxNetwork::describe_memory() const {
    if (!device_.on_cuda()) return;
    ucp_context_attr_t attributes = {};
    attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
    check_ucx(ucx().context_query(context_, &attributes), "ucp_context_query");
    if ((attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) == 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "{} ({}) does not know CUDA memory", name_, ucx().file);
    }
}

void UcxNetwork::close() noexcept {
    if (worker_ == nullptr) return;
    try {
        DeviceGuard guard(device_);
        for (ucp_rkey *key : keys_) ucx().rkey_destroy(key);
        ucx().worker_destroy(worker_);
    } catch (const std::exception &error) {
        log(MOELINK_LOG_WARN, "UCX was not given up: {}", error.what());
    }
    keys_.clear();
    worker_ = nullptr;
    peers_.clear();
}

void UcxNetwork::connect(int peer, const uint8_t *address, size_t, Loss loss) {
    auto made = std::make_unique<Peer>();
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.address = reinterpret_cast<const ucp_address_t *>(address);
    params.err_mode = UCP_ERR_HANDLING_MODE_NONE;
    if (loss == Loss::told) {
        params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER;
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler.cb = [](void *lost, ucp_ep_h, ucs_status_t status) { static_cast<Peer *>(lost)->lost = status; };
        params.err_handler.arg = made.get();
    }
    DeviceGuard guard(device_);
    check_ucx(ucx().ep_create(worker_, &params, &made->endpoint), "ucp_ep_create");
    peers_[peer] = std::move(made);
}

// UCX tells of transports only in what it prints for people: "lane[1]:  2:tcp/eth0.0 md[1] ...".
std::string UcxNetwork::transports(int peer) const {
    auto found = peers_.find(peer);
    if (found == peers_.end() || found->second->lost != UCS_OK) return "none";
    char *text = nullptr;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    if (file == nullptr) return "unknown";
    ucx().ep_print_info(found->second->endpoint, file);
    fclose(file);
    const std::string all(text, bytes);
    std::free(text);
    std::string names;
    for (size_t at = all.find("lane["); at != std::string::npos; at = all.find("lane[", at + 1)) {
        const size_t number = all.find_first_not_of(' ', all.find("]:", at) + 2);
        const size_t name = all.find(':', number) + 1;
        const size_t end = all.find_first_of(" \n", name);
        if (number == std::string::npos || name == 0 || end == std::string::npos) break;
        names += (names.empty() ? "" : ", ") + all.substr(name, end - name);
    }
    return names.empty() ? "unknown" : names;
}

void UcxNetwork::progress() const {
    if (worker_ == nullptr) return;
    DeviceGuard guard(device_);
    ucx().worker_progress(worker_);
}

std::unique_ptr<NetworkKey> UcxNetwork::unlock(int peer, const uint8_t *key, size_t) { return std::make_unique<UcxKey>(self(), peer, key); }

std::shared_ptr<NetworkMemory> UcxNetwork::share(void *base, uint64_t bytes) { return std::make_shared<UcxMemory>(self(), base, bytes); }

UcxMemory::UcxMemory(std::shared_ptr<UcxNetwork> network, void *base, uint64_t bytes) : network_(std::move(network)) {
    const Ucx &table = ucx();
    DeviceGuard guard(network_->device_);
    ucp_mem_map_params_t params = {};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
    params.address = base;
    params.length = bytes;
    check_ucx(table.mem_map(network_->context_, &params, &memory_), "ucp_mem_map");
    try {
        ucp_mem_attr_t attributes = {};
        attributes.field_mask = UCP_MEM_ATTR_FIELD_MEM_TYPE;
        check_ucx(table.mem_query(memory_, &attributes), "ucp_mem_query");
        const ucs_memory_type_t wanted = network_->device_.on_cuda() ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
        if (attributes.mem_type != wanted) {
            fail(MOELINK_ERR_UNSUPPORTED, "UCX takes it for memory of type {}, not {}", static_cast<int>(attributes.mem_type),
                 static_cast<int>(wanted));
        }
        void *key = nullptr;
        size_t size = 0;
        check_ucx(table.rkey_pack(network_->context_, memory_, &key, &size), "ucp_rkey_pack");
        key_.assign(static_cast<uint8_t *>(key), static_cast<uint8_t *>(key) + size);
        table.rkey_buffer_release(key);
        if (size == 0 || size > most_key) fail(MOELINK_ERR_INTERNAL, "UCX gives a key of {} bytes", size);
    } catch (...) {
        table.mem_unmap(network_->context_, memory_);
        throw;
    }
}

UcxMemory::~UcxMemory() {
    try {
        DeviceGuard guard(network_->device_);
        check_ucx(ucx().mem_unmap(network_->context_, memory_), "ucp_mem_unmap");
    } catch (const Error &error) {
        log(MOELINK_LOG_WARN, "memory was not taken back from UCX: {}", error.text());
    }
}

UcxKey::UcxKey(std::shared_ptr<UcxNetwork> network, int peer, const uint8_t *key) : network_(std::move(network)), peer_(peer) {
    auto found = network_->peers_.find(peer);
    if (found == network_->peers_.end()) fail(MOELINK_ERR_INVALID_STATE, "UCX is not connected to rank {}", peer);
    DeviceGuard guard(network_->device_);
    check_ucx(ucx().ep_rkey_unpack(found->second->endpoint, key, &key_), "ucp_ep_rkey_unpack");
    network_->keys_.insert(key_);
}

UcxKey::~UcxKey() {
    if (network_->keys_.erase(key_) != 0) ucx().rkey_destroy(key_);
}

std::unique_ptr<NetworkGet> UcxKey::get(void *to, uint64_t from, uint64_t bytes) {
    return std::make_unique<UcxGet>(*this, to, from, bytes);
}

UcxGet::UcxGet(const UcxKey &key, void *to, uint64_t from, uint64_t bytes) : network_(key.network_), peer_(key.peer_) {
    auto found = network_->peers_.find(peer_);
    if (found == network_->peers_.end()) fail(MOELINK_ERR_PEER_UNREACHABLE, "UCX is not connected to rank {} any more", peer_);
    const UcxNetwork::Peer &peer = *found->second;
    if (peer.lost != UCS_OK) fail(MOELINK_ERR_PEER_UNREACHABLE, "UCX has lost rank {}: {}", peer_, text_of(peer.lost));
    DeviceGuard guard(network_->device_);
    ucp_request_param_t param = {};
    const ucs_status_ptr_t request = ucx().get(peer.endpoint, to, bytes, from, key.key_, &param);
    if (UCS_PTR_IS_ERR(request)) {
        fail(MOELINK_ERR_PEER_UNREACHABLE, "UCX does not read from rank {}: {}", peer_, text_of(UCS_PTR_STATUS(request)));
    }
    request_ = request;
}

void UcxGet::forget() noexcept {
    // A worker that was closed has taken its requests with it.
    if (request_ != nullptr && network_->worker_ != nullptr) ucx().request_free(request_);
    request_ = nullptr;
}

bool UcxGet::passed() {
    if (request_ == nullptr) return true;
    if (network_->worker_ == nullptr) {
        forget();
        fail(MOELINK_ERR_PEER_UNREACHABLE, "UCX was given up before it had read from rank {}", peer_);
    }
    const ucs_status_t status = ucx().request_status(request_);
    if (status == UCS_INPROGRESS) return false;
    forget();
    if (status != UCS_OK) fail(MOELINK_ERR_PEER_UNREACHABLE, "UCX did not read from rank {}: {}", peer_, text_of(status));
    return true;
}

std::shared_ptr<Network> make_ucx(const Device &device, int ranks) { return std::make_shared<UcxNetwork>(device, ranks); }

#else

std::shared_ptr<Network> make_ucx(const Device &, int) {
    ucx_version();  // throws
    return nullptr;
}

#endif

}  // namespace

const NetworkKind ucx_network_kind = {"UCX", &make_ucx};

}  // namespace moelink::eplb
