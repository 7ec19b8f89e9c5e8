#include "eplb/network_peers.hpp"

#include "base/log.hpp"
#include "base/params.hpp"
#include "group/agreement.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

#include <sodium.h>

namespace moelink::eplb {

namespace {

// Large enough for what a network does with weights, which differs from what it does with a few bytes.
constexpr uint64_t probe_bytes = 128 << 10;
constexpr uint64_t odd_at = 13;
constexpr uint64_t odd_bytes = 7;

constexpr uint64_t second = 1'000'000'000;

// What a rank tells the others of itself.
struct Introduction {
    uint64_t probe;
    uint64_t seed;
    uint32_t address_bytes;  // 0: it cannot be read, why says so
    uint32_t key_bytes;
    char why[256];
};

// What a rank tells of one tensor.
struct TensorCard {
    uint64_t base;
    uint64_t slot_stride;
    uint64_t row_stride;
    uint32_t key_bytes;  // 0: it cannot be read, why says so
    uint32_t reserved;
    char why[160];
};

// Gets that a phase began, and those of them that came.
struct Tally {
    int32_t begun;
    int32_t came;
};

std::string text_in(const char *text, size_t room) { return std::string(text, strnlen(text, room)); }

std::vector<uint8_t> probe_pattern(uint64_t seed) {
    std::vector<uint8_t> bytes(probe_bytes);
    unsigned char key[randombytes_SEEDBYTES] = {};
    std::memcpy(key, &seed, sizeof seed);
    randombytes_buf_deterministic(bytes.data(), bytes.size(), key);
    return bytes;
}

Deadline sooner(const Deadline &deadline, uint64_t part, uint64_t most_ns) {
    return Deadline::after_ns(std::min(deadline.left_ns() / part, most_ns));
}

// Every rank's bytes, as many as the longest has; rank r's are at r * width.
Bytes gather(Group &group, Bytes mine, size_t width, const Deadline &deadline) {
    mine.resize(width);
    Bytes all(width * static_cast<size_t>(group.size()));
    group.allgather(mine.data(), all.data(), width, deadline);
    return all;
}

// True when a tensor of these strides with so many slots ends within what an address can reach, so that no sum below wraps.
bool is_sane(const TensorCard &card, const moelink_eplb_tensor &tensor, int32_t slots) {
    constexpr uint64_t most = uint64_t{1} << 60;
    if (card.row_stride < tensor.row_bytes || card.row_stride > most / tensor.rows) return false;
    if (card.slot_stride > most / static_cast<uint64_t>(slots)) return false;
    return card.base != 0 && card.base <= UINT64_MAX - 2 * most;
}

}  // namespace

// Serves peers that still connect while this rank waits for them.
class NetworkPeers::Progress final : public Attendant {
public:
    explicit Progress(Network *network) : network_(network) {}
    void on_message(const Message &) noexcept override {}
    Busy poll() noexcept override {
        if (network_ != nullptr) network_->progress();
        return network_ != nullptr ? Busy::waiting : Busy::no;
    }

private:
    Network *network_;
};

NetworkPeers::NetworkPeers(const CommBackendParams &params, const NetworkKind &kind)
    : group_(params.group), device_(params.device), places_(params.places), flags_(params.params.flags), kind_(kind),
      peers_(static_cast<size_t>(params.group.size())) {}

bool NetworkPeers::joined(int a, int b) const {
    const ProcessPlace &here = places_[static_cast<size_t>(a)];
    const ProcessPlace &there = places_[static_cast<size_t>(b)];
    if (same_process(here, there)) return false;
    return (flags_ & MOELINK_EPLB_COMM_F_NO_MAP) != 0 || !may_share_host(here, there);
}

// A meeting that failed may have left reads under way.
NetworkPeers::~NetworkPeers() {
    if (network_ && std::any_of(peers_.begin(), peers_.end(), [](const Peer &peer) { return !peer.gets.empty(); })) network_->close();
}

int64_t NetworkPeers::wanted() const {
    int64_t pairs = 0;
    for (int a = 0; a < group_.size(); ++a) {
        for (int b = 0; b < a; ++b) pairs += joined(a, b) ? 2 : 0;
    }
    return pairs;
}

void NetworkPeers::refuse(Peer &peer, std::string why) {
    peer.proven = false;
    if (peer.why.empty()) peer.why = std::move(why);
}

std::string NetworkPeers::describe(int rank) const {
    const Peer &peer = peers_[static_cast<size_t>(rank)];
    if (peer.proven) return fmt::format("{} ({})", network_->name(), peer.transports);
    return peer.why.empty() ? "" : refusal(peer.why);
}

int64_t NetworkPeers::meet(const Deadline &deadline) {
    if (!introduce(deadline)) return 0;
    wire(deadline);
    prove(deadline);
    const std::vector<int32_t> given_up = group_.allgather(int32_t{drain(deadline) ? 0 : 1}, deadline);
    int32_t reads = 0;
    for (int rank = 0; rank < group_.size(); ++rank) {
        Peer &peer = peers_[static_cast<size_t>(rank)];
        if (given_up[static_cast<size_t>(rank)] != 0 && joined(group_.rank(), rank)) refuse(peer, fmt::format("it was given up on rank {}", rank));
        if (peer.proven) peer.transports = network_->transports(rank);
        peer.landing = {};
        reads += peer.proven ? 1 : 0;
    }
    int64_t all = 0;
    for (const int32_t one : group_.allgather(reads, deadline)) all += one;
    if (all == 0) leave();
    return all;
}

void NetworkPeers::leave() {
    for (Peer &peer : peers_) {
        if (peer.proven) refuse(peer, "another network was chosen");
        peer.probe_key.reset();
    }
    probe_memory_.reset();
    probe_ = {};
    network_.reset();
}

// Addresses and keys go over the group's own connections. False: no rank has the library, and nothing else is to be tried.
bool NetworkPeers::introduce(const Deadline &deadline) {
    const int me = group_.rank();
    Introduction mine{};
    Bytes blob;
    try {
        randombytes_buf(&mine.seed, sizeof mine.seed);
        network_ = kind_.make(device_, group_.size());
        probe_ = Buffer(device_, probe_bytes);
        device_.write(probe_.as(), probe_pattern(mine.seed).data(), probe_bytes);
        probe_memory_ = network_->share(probe_.as(), probe_bytes);
        blob = network_->address();
        blob.insert(blob.end(), probe_memory_->key().begin(), probe_memory_->key().end());
        mine.probe = reinterpret_cast<uintptr_t>(probe_.as());
        mine.address_bytes = static_cast<uint32_t>(network_->address().size());
        mine.key_bytes = static_cast<uint32_t>(probe_memory_->key().size());
    } catch (const Error &error) {
        write_text(error.text(), mine.why, sizeof mine.why);
        probe_memory_.reset();
        network_.reset();
        blob.clear();
    }
    const std::vector<Introduction> all = group_.allgather(mine, deadline);
    size_t width = 1;
    for (const Introduction &one : all) width = std::max(width, size_t{one.address_bytes} + one.key_bytes);
    const Bytes blobs = gather(group_, std::move(blob), width, deadline);
    for (int rank = 0; rank < group_.size(); ++rank) {
        if (!joined(me, rank)) continue;
        Peer &peer = peers_[static_cast<size_t>(rank)];
        const Introduction &one = all[static_cast<size_t>(rank)];
        if (!network_) {
            refuse(peer, text_in(mine.why, sizeof mine.why));
        } else if (one.address_bytes == 0) {
            refuse(peer, fmt::format("on rank {}: {}", rank, text_in(one.why, sizeof one.why)));
        } else {
            try {
                const uint8_t *at = blobs.data() + static_cast<size_t>(rank) * width;
                const bool one_host = may_share_host(places_[static_cast<size_t>(me)], places_[static_cast<size_t>(rank)]);
                network_->connect(rank, at, one.address_bytes, one_host ? Network::Loss::not_told : Network::Loss::told);
                peer.probe_key = network_->unlock(rank, at + one.address_bytes, one.key_bytes);
                peer.probe = one.probe;
                peer.seed = one.seed;
                peer.landing = Buffer(device_, probe_bytes);
            } catch (const Error &error) {
                refuse(peer, error.text());
            }
        }
    }
    return std::any_of(all.begin(), all.end(), [](const Introduction &one) { return one.address_bytes != 0; });
}

void NetworkPeers::start(Peer &peer, uint64_t from, uint64_t bytes) {
    try {
        peer.gets.push_back(peer.probe_key->get(peer.landing.as() + from, peer.probe + from, bytes));
    } catch (const Error &error) {
        refuse(peer, error.text());
    }
}

bool NetworkPeers::collect() {
    if (!network_) return true;
    network_->progress();
    bool all = true;
    for (Peer &peer : peers_) {
        try {
            std::erase_if(peer.gets, [](const std::unique_ptr<NetworkGet> &get) { return get->passed(); });
        } catch (const Error &error) {
            refuse(peer, error.text());
        }
        all = all && peer.gets.empty();
    }
    return all;
}

bool NetworkPeers::collect_until(const Deadline &deadline) {
    while (!collect()) {
        if (deadline.passed()) return false;
        std::this_thread::yield();
    }
    return true;
}

// The first read of a peer may need both ends, since connections are made then.
void NetworkPeers::wire(const Deadline &deadline) {
    for (int rank = 0; rank < group_.size(); ++rank) {
        Peer &peer = peers_[static_cast<size_t>(rank)];
        if (joined(group_.rank(), rank) && peer.why.empty()) start(peer, 0, odd_bytes);
    }
    collect_until(sooner(deadline, 4, 10 * second));
    for (Peer &peer : peers_) {
        if (!peer.gets.empty()) refuse(peer, "a first read did not come in time");
    }
    Progress progress(network_.get());
    group_.allgather(1, deadline, &progress);
    // A rank that has not yet left this exchange would serve the reads that are to prove that nobody does.
    group_.barrier(deadline);
}

// By the bits of rank numbers: of two ranks that differ in a bit, one reads while the other sleeps in the group's exchange, then
// the other way round. A few turns serve any number of ranks; where nothing came at all in two of them, more would only wait.
void NetworkPeers::prove(const Deadline &deadline) {
    const int me = group_.rank();
    Tally all{};
    int in_vain = 0;
    for (int bit = 1; bit < group_.size(); bit <<= 1) {
        const int32_t begun = all.begun;
        for (int side = 0; side < 2; ++side) {
            Tally mine{};
            std::vector<int> tried;
            if (((me & bit) != 0) == (side != 0)) {
                for (int rank = 0; rank < group_.size(); ++rank) {
                    Peer &peer = peers_[static_cast<size_t>(rank)];
                    if ((rank & bit) == (me & bit) || !joined(me, rank) || peer.proven || !peer.why.empty()) continue;
                    device_.clear(peer.landing.as(), probe_bytes);
                    start(peer, 0, probe_bytes - odd_at);
                    start(peer, probe_bytes - odd_at, odd_bytes);
                    tried.push_back(rank);
                }
                collect_until(sooner(deadline, 8, second / 2));
                for (const int rank : tried) {
                    Peer &peer = peers_[static_cast<size_t>(rank)];
                    check(rank, peer);
                    mine.came += peer.proven ? 1 : 0;
                }
                mine.begun = static_cast<int32_t>(tried.size());
            }
            for (const Tally &one : group_.allgather(mine, deadline)) {
                all.begun += one.begun;
                all.came += one.came;
            }
        }
        if (all.begun != begun && all.came == 0 && ++in_vain == 2) return give_up();
    }
}

void NetworkPeers::give_up() {
    std::string why = "not tried, since nothing could be read on other ranks";
    for (size_t rank = 0; rank < peers_.size(); ++rank) {
        if (peers_[rank].why.empty()) continue;
        why = fmt::format("not tried, since it failed with rank {}: {}", rank, peers_[rank].why);
        break;
    }
    for (int rank = 0; rank < group_.size(); ++rank) {
        if (joined(group_.rank(), rank)) refuse(peers_[static_cast<size_t>(rank)], why);
    }
}

void NetworkPeers::check(int rank, Peer &peer) {
    if (!peer.gets.empty()) {
        return refuse(peer, fmt::format("{} here needs the peer's CPU (transport {})", network_->name(), network_->transports(rank)));
    }
    if (!peer.why.empty()) return;
    std::vector<uint8_t> got(probe_bytes);
    device_.read(got.data(), peer.landing.as(), probe_bytes);
    std::vector<uint8_t> wanted = probe_pattern(peer.seed);
    std::fill(wanted.end() - (odd_at - odd_bytes), wanted.end(), 0);
    if (got != wanted) return refuse(peer, fmt::format("what {} reads is not what rank {} has", network_->name(), rank));
    peer.proven = true;
}

// Reads that needed the peer's CPU end now that every rank is at work again.
bool NetworkPeers::drain(const Deadline &deadline) {
    const bool drained = collect_until(sooner(deadline, 4, 5 * second));
    Progress progress(network_.get());
    group_.allgather(1, deadline, &progress);
    if (drained) return true;
    network_->close();
    for (Peer &peer : peers_) {
        peer.gets.clear();
        if (peer.proven) refuse(peer, "reads from other ranks did not end");
    }
    return false;
}

NetworkLayer NetworkPeers::look(const Layer &layer, std::vector<uint8_t> wanted, const Deadline &deadline) {
    const size_t ranks = static_cast<size_t>(group_.size());
    const size_t me = static_cast<size_t>(group_.rank());
    const size_t count = layer.tensors.size();
    NetworkLayer result;
    result.ranks.resize(ranks);
    for (size_t rank = 0; rank < ranks; ++rank) wanted[rank] = wanted[rank] != 0 && peers_[rank].proven ? 1 : 0;
    const Bytes all = gather(group_, wanted, ranks, deadline);
    if (std::all_of(all.begin(), all.end(), [](uint8_t one) { return one == 0; })) return result;
    bool read = false;
    for (size_t rank = 0; rank < ranks; ++rank) read = read || all[rank * ranks + me] != 0;

    std::vector<TensorCard> mine(count);
    size_t width = 1;
    if (read && layer.local_slots > 0) {
        for (size_t i = 0; i < count; ++i) {
            const moelink_eplb_tensor &tensor = layer.tensors[i];
            mine[i].base = reinterpret_cast<uintptr_t>(tensor.base);
            mine[i].slot_stride = tensor.slot_stride;
            mine[i].row_stride = tensor.row_stride;
            try {
                const uint64_t bytes = static_cast<uint64_t>(layer.local_slots - 1) * tensor.slot_stride +
                                       (tensor.rows - 1) * tensor.row_stride + tensor.row_bytes;
                result.mine.push_back(network_->share(tensor.base, bytes));
                mine[i].key_bytes = static_cast<uint32_t>(result.mine.back()->key().size());
            } catch (const Error &error) {
                write_text(error.text(), mine[i].why, sizeof mine[i].why);
                result.mine.push_back(nullptr);
            }
        }
    }
    std::vector<TensorCard> cards(count * ranks);
    group_.allgather(mine.data(), cards.data(), count * sizeof(TensorCard), deadline);
    for (const TensorCard &card : cards) width = std::max<size_t>(width, card.key_bytes);
    Bytes keys(width * count);
    for (size_t i = 0; i < result.mine.size(); ++i) {
        if (result.mine[i]) std::copy(result.mine[i]->key().begin(), result.mine[i]->key().end(), keys.begin() + static_cast<ptrdiff_t>(i * width));
    }
    keys = gather(group_, std::move(keys), width * count, deadline);
    for (size_t rank = 0; rank < ranks; ++rank) {
        if (wanted[rank] == 0 || layer.rank_slots[rank] == 0) continue;
        NetworkLayer::Rows &rows = result.ranks[rank];
        try {
            for (size_t i = 0; i < count; ++i) {
                const TensorCard &card = cards[rank * count + i];
                const std::string tensor = fmt::format("tensor {} of layer {}", i, layer.number);
                if (card.key_bytes == 0) fail(MOELINK_ERR_UNSUPPORTED, "{}: {}", tensor, text_in(card.why, sizeof card.why));
                if (!is_sane(card, layer.tensors[i], layer.rank_slots[rank])) {
                    fail(MOELINK_ERR_PROTOCOL, "{}: its strides are not possible", tensor);
                }
                rows.keys.push_back(network_->unlock(static_cast<int>(rank), keys.data() + (rank * count + i) * width, card.key_bytes));
                rows.base.push_back(card.base);
                rows.slot_stride.push_back(card.slot_stride);
                rows.row_stride.push_back(card.row_stride);
            }
        } catch (const Error &error) {
            rows = {};
            rows.why = error.text();
        }
    }
    return result;
}

}  // namespace moelink::eplb
