#include "eplb/pull.hpp"

#include <algorithm>
#include <cstring>

namespace moelink::eplb {

namespace {

enum Kind : uint32_t {
    kind_ask = 16,
    kind_chunk = 17,
};

}  // namespace

uint64_t ChunkRing::bytes(uint64_t chunk_bytes) { return slots * ((sizeof(MessageHead) + chunk_bytes + 127) / 128 * 128); }

ChunkRing::ChunkRing(const Device &device, uint64_t chunk_bytes) : device_(device), stride_(bytes(chunk_bytes) / slots) {
    void *view = nullptr;
    memory_ = static_cast<unsigned char *>(device_.allocate_pinned(bytes(chunk_bytes), &view));
}

ChunkRing::~ChunkRing() { device_.release_pinned(memory_); }

int ChunkRing::take() {
    for (int slot = 0; slot < slots; ++slot) {
        if (!taken_[slot].exchange(true, std::memory_order_acquire)) return slot;
    }
    return -1;
}

Payload ChunkRing::lend(int slot, uint64_t bytes) {
    std::shared_ptr<const void> keep(at(slot), [ring = shared_from_this(), slot](const void *) { ring->give_back(slot); });
    return Payload(std::move(keep), at(slot), sizeof(MessageHead) + bytes);
}

PullRoom::PullRoom(const CommBackendParams &params)
    : group(params.group), device(params.device), places(params.places), chunk_bytes(params.params.chunk_bytes),
      ring(std::make_shared<ChunkRing>(device, chunk_bytes)),
      landing(device.on_cuda() ? std::make_shared<ChunkRing>(device, chunk_bytes) : nullptr) {}

uint64_t PullRoom::host_bytes() const { return ChunkRing::bytes(chunk_bytes) * (landing ? 2 : 1); }

Pull::Pull(PullRoom &room, Round &round) : room_(room), round_(round) {
    for (const Transfer &send : round.sends) sends_[send.peer].push_back(&send);
    for (auto &[peer, list] : sends_) {
        std::sort(list.begin(), list.end(), [](const Transfer *a, const Transfer *b) { return a->expert < b->expert; });
    }
}

void Pull::fetch(Transfer &receive) {
    const ProcessPlace &here = room_.places[static_cast<size_t>(room_.group.rank())];
    const bool one_host = may_share_host(here, room_.places[static_cast<size_t>(receive.peer)]);
    receive.link = one_host ? MOELINK_EPLB_LINK_HOST : MOELINK_EPLB_LINK_NETWORK;
    wanted_.push_back(Fetch{&receive, total_bytes(receive.rows), 0, 0});
    asking_.push_back(&wanted_.back());
}

void Pull::on_message(int from, const MessageHead &head, const Payload &payload) {
    if (head.kind == kind_ask) {
        const Transfer &send = sent(from, head.item);
        const uint64_t bytes = total_bytes(send.rows);
        if (head.bytes == 0 || head.bytes > room_.chunk_bytes || head.offset > bytes || head.bytes > bytes - head.offset) {
            fail(MOELINK_ERR_PROTOCOL, "rank {} asks for {} bytes at {} of expert {}, which has {}", from, head.bytes, head.offset,
                 send.expert, bytes);
        }
        requests_.push_back(Request{from, head});
    } else if (head.kind == kind_chunk) {
        receive(from, head, payload);
    } else {
        fail(MOELINK_ERR_PROTOCOL, "rank {} sent a message of kind {}", from, head.kind);
    }
}

const Transfer &Pull::sent(int peer, uint32_t item) const {
    auto found = sends_.find(peer);
    if (found == sends_.end() || item >= found->second.size()) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} asks for item {}, which it is not sent", peer, item);
    }
    return *found->second[item];
}

Busy Pull::poll() {
    advance_copies();
    ask();
    serve();
    return requests_.empty() && copies_.empty() && parked_.empty() ? Busy::no : Busy::waiting;
}

// As many chunks are on their way as the ring of a sender has slots, so neither end waits for a round trip; one of each expert
// in turn, so that all senders work.
void Pull::ask() {
    while (!asking_.empty() && in_flight_ < ChunkRing::slots) {
        Fetch &fetch = *asking_.front();
        asking_.pop_front();
        const uint64_t bytes = std::min(room_.chunk_bytes, fetch.bytes - fetch.asked);
        const MessageHead head{round_.generation, kind_ask, fetch.receive->item, fetch.asked, bytes};
        room_.group.send(fetch.receive->peer, make_message(head), round_.deadline);
        fetch.asked += bytes;
        ++in_flight_;
        if (fetch.asked < fetch.bytes) asking_.push_back(&fetch);
    }
}

void Pull::serve() {
    while (!requests_.empty()) {
        const int slot = room_.ring->take();
        if (slot < 0) return;
        const Request request = requests_.front();
        requests_.pop_front();
        unsigned char *data = room_.ring->at(slot) + sizeof(MessageHead);
        copies_.push_back(Copy{slot, Mark(), request, nullptr});
        gather_range(room_.device, data, sent(request.peer, request.head.item).rows, request.head.offset, request.head.bytes, round_.stream);
        copies_.back().mark = Mark(room_.device, round_.stream);
        advance_copies();
    }
}

void Pull::receive(int from, const MessageHead &head, const Payload &payload) {
    auto mine = [&](const Fetch &fetch) { return fetch.receive->peer == from && fetch.receive->item == head.item; };
    auto found = std::find_if(wanted_.begin(), wanted_.end(), mine);
    if (found == wanted_.end() || payload.bytes != sizeof head + head.bytes || head.offset > found->asked ||
        head.bytes > found->asked - head.offset) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} sent {} bytes of item {} that nobody asked for", from, head.bytes, head.item);
    }
    if (!room_.landing) {
        scatter_range(room_.device, found->receive->rows, payload.data + sizeof head, head.offset, head.bytes, round_.stream);
        return arrived(*found, head.bytes);
    }
    const int slot = room_.landing->take();
    if (slot < 0) {
        parked_.push_back(Message{from, payload});
        return;
    }
    std::memcpy(room_.landing->at(slot), payload.data, payload.bytes);
    copies_.push_back(Copy{slot, Mark(), Request{from, head}, &*found});
    scatter_range(room_.device, found->receive->rows, room_.landing->at(slot) + sizeof head, head.offset, head.bytes, round_.stream);
    copies_.back().mark = Mark(room_.device, round_.stream);
}

// Copies end in the order in which they began.
void Pull::advance_copies() {
    while (!copies_.empty() && copies_.front().mark.passed()) {
        const Copy &copy = copies_.front();
        if (copy.fetch != nullptr) {
            room_.landing->give_back(copy.slot);
            arrived(*copy.fetch, copy.request.head.bytes);
        } else {
            MessageHead head = copy.request.head;
            head.kind = kind_chunk;
            std::memcpy(room_.ring->at(copy.slot), &head, sizeof head);
            room_.group.send(copy.request.peer, room_.ring->lend(copy.slot, head.bytes), round_.deadline);
        }
        copies_.pop_front();
    }
    if (parked_.empty()) return;
    std::deque<Message> parked;
    parked.swap(parked_);
    for (const Message &message : parked) {
        MessageHead head;
        std::memcpy(&head, message.payload.data, sizeof head);
        receive(message.from, head, message.payload);
    }
}

void Pull::arrived(Fetch &fetch, uint64_t bytes) {
    fetch.landed += bytes;
    --in_flight_;
    if (fetch.landed == fetch.bytes) fetch.receive->landed = true;
}

void Pull::end() {
    const bool copying = !copies_.empty();
    for (const Copy &copy : copies_) (copy.fetch != nullptr ? room_.landing : room_.ring)->give_back(copy.slot);
    copies_.clear();
    parked_.clear();
    requests_.clear();
    wanted_.clear();
    sends_.clear();
    asking_.clear();
    in_flight_ = 0;
    if (copying) room_.device.synchronize(round_.stream);
}

}  // namespace moelink::eplb
