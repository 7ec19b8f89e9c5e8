#include "eplb/pull.hpp"

#include "eplb/comm_round.hpp"
#include "eplb/network_reads.hpp"

#include <algorithm>
#include <cstring>

namespace moelink::eplb {

namespace {

enum Kind : uint32_t {
    kind_ask = 16,
    kind_chunk = 17,
    kind_ask_place = 18,  // for a chunk that the receiver will read
    kind_place = 19,      // where it is: a slot of the sender's ring follows
    kind_taken = 20,      // it has been read; the slot follows
};

int slot_in(const Payload &payload, int from) {
    int32_t slot = -1;
    if (payload.bytes == sizeof(MessageHead) + sizeof slot) std::memcpy(&slot, payload.data + sizeof(MessageHead), sizeof slot);
    if (slot < 0 || slot >= ChunkRing::slots) fail(MOELINK_ERR_PROTOCOL, "rank {} names a slot that is not in a ring", from);
    return slot;
}

Payload slot_message(MessageHead head, uint32_t kind, int32_t slot) {
    head.kind = kind;
    return make_message(head, &slot, sizeof slot);
}

}  // namespace

uint64_t ChunkRing::bytes(uint64_t chunk_bytes) { return slots * ((sizeof(MessageHead) + chunk_bytes + 127) / 128 * 128); }

ChunkRing::ChunkRing(const Device &device, uint64_t chunk_bytes) : stride_(bytes(chunk_bytes) / slots), memory_(device, bytes(chunk_bytes)) {}

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

PullRoom::PullRoom(const CommBackendParams &params, Way way)
    : group(params.group), device(params.device), places(params.places), chunk_bytes(params.params.chunk_bytes),
      ring(std::make_shared<ChunkRing>(device, chunk_bytes)), network(way == Way::network_too ? std::make_unique<NetworkRing>(params) : nullptr),
      landing(device.on_cuda() || (network && network->needed()) ? std::make_shared<ChunkRing>(device, chunk_bytes) : nullptr) {}

void PullRoom::meet(const Deadline &deadline) {
    if (network->needed()) network->meet(ring->at(0), landing->at(0), ChunkRing::bytes(chunk_bytes), deadline);
}

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
    wanted_.push_back(Fetch{&receive, total_bytes(receive.rows), 0, 0, {}});
    asking_.push_back(&wanted_.back());
}

void Pull::on_message(int from, const MessageHead &head, const Payload &payload) {
    switch (head.kind) {
    case kind_ask:
    case kind_ask_place: return request(from, head);
    case kind_chunk: return receive(from, head, payload);
    case kind_place: return read(from, head, payload);
    case kind_taken: return take_back(from, slot_in(payload, from));
    default: fail(MOELINK_ERR_PROTOCOL, "rank {} sent a message of kind {}", from, head.kind);
    }
}

void Pull::request(int from, const MessageHead &head) {
    const Transfer &send = sent(from, head.item);
    const uint64_t bytes = total_bytes(send.rows);
    if (head.bytes == 0 || head.bytes > room_.chunk_bytes || head.offset > bytes || head.bytes > bytes - head.offset) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} asks for {} bytes at {} of expert {}, which has {}", from, head.bytes, head.offset, send.expert,
             bytes);
    }
    requests_.push_back(Request{from, head});
}

const Transfer &Pull::sent(int peer, uint32_t item) const {
    auto found = sends_.find(peer);
    if (found == sends_.end() || item >= found->second.size()) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} asks for item {}, which it is not sent", peer, item);
    }
    return *found->second[item];
}

Busy Pull::poll() {
    advance_reads();
    advance_copies();
    ask();
    serve();
    return requests_.empty() && copies_.empty() && parked_.empty() && reads_.empty() ? Busy::no : Busy::waiting;
}

// As many chunks are on their way as the ring of a sender has slots, so neither end waits for a round trip; one of each expert
// in turn, so that all senders work.
void Pull::ask() {
    while (!asking_.empty() && in_flight_ < ChunkRing::slots) {
        Fetch &fetch = *asking_.front();
        asking_.pop_front();
        const uint64_t bytes = chunk_at(fetch, fetch.asked);
        const uint32_t kind = room_.reads(fetch.receive->peer) ? kind_ask_place : kind_ask;
        const MessageHead head{round_.generation, kind, fetch.receive->item, fetch.asked, bytes};
        room_.group.send(fetch.receive->peer, make_message(head), round_.deadline);
        fetch.open.push_back(fetch.asked);
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

uint64_t Pull::chunk_at(const Fetch &fetch, uint64_t offset) const { return std::min(room_.chunk_bytes, fetch.bytes - offset); }

Pull::Fetch &Pull::asked(int from, const MessageHead &head) {
    auto mine = [&](const Fetch &fetch) { return fetch.receive->peer == from && fetch.receive->item == head.item; };
    auto found = std::find_if(wanted_.begin(), wanted_.end(), mine);
    const bool open = found != wanted_.end() && std::find(found->open.begin(), found->open.end(), head.offset) != found->open.end();
    if (!open || head.bytes != chunk_at(*found, head.offset)) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} has {} bytes of item {} that nobody asked for", from, head.bytes, head.item);
    }
    return *found;
}

// It will not come again.
void Pull::accept(Fetch &fetch, const MessageHead &head) { std::erase(fetch.open, head.offset); }

// -1: there is none, and the message waits for one.
int Pull::landing_slot(int from, const Payload &payload) {
    const int slot = room_.landing->take();
    if (slot < 0) parked_.push_back(Message{from, payload});
    return slot;
}

void Pull::receive(int from, const MessageHead &head, const Payload &payload) {
    Fetch &fetch = asked(from, head);
    if (payload.bytes != sizeof head + head.bytes) fail(MOELINK_ERR_PROTOCOL, "rank {} sent {} of {} bytes", from, payload.bytes, head.bytes);
    if (!room_.device.on_cuda()) {
        accept(fetch, head);
        scatter_range(room_.device, fetch.receive->rows, payload.data + sizeof head, head.offset, head.bytes, round_.stream);
        return arrived(fetch, head.bytes);
    }
    const int slot = landing_slot(from, payload);
    if (slot < 0) return;
    accept(fetch, head);
    std::memcpy(room_.landing->at(slot), payload.data, payload.bytes);
    move_on(fetch, Request{from, head}, slot);
}

void Pull::read(int from, const MessageHead &head, const Payload &payload) {
    Fetch &fetch = asked(from, head);
    const int peer_slot = slot_in(payload, from);
    if (!room_.reads(from)) fail(MOELINK_ERR_PROTOCOL, "rank {} says where a chunk is that is not to be read", from);
    const int slot = landing_slot(from, payload);
    if (slot < 0) return;
    accept(fetch, head);
    const uint64_t offset = room_.ring->offset(peer_slot) + sizeof head;  // rings are alike
    fetch.receive->link = MOELINK_EPLB_LINK_NETWORK;
    try {
        reads_.push_back(Read{slot, peer_slot, room_.network->get(from, offset, room_.landing->at(slot) + sizeof head, head.bytes),
                              Request{from, head}, &fetch});
    } catch (const Error &error) {
        room_.landing->give_back(slot);
        throw LostRound(error.status(), error.text());
    }
}

void Pull::advance_reads() {
    if (reads_.empty()) return;
    room_.network->network().progress();
    for (size_t i = 0; i < reads_.size();) {
        Read &one = reads_[i];
        try {
            if (!one.get->passed()) {
                ++i;
                continue;
            }
        } catch (const Error &error) {
            throw LostRound(error.status(), error.text());
        }
        room_.group.send(one.request.peer, slot_message(one.request.head, kind_taken, one.peer_slot), round_.deadline);
        move_on(*one.fetch, one.request, one.slot);
        reads_[i] = std::move(reads_.back());
        reads_.pop_back();
    }
}

// What has come into a slot of the landing goes to its rows.
void Pull::move_on(Fetch &fetch, const Request &request, int slot) {
    copies_.push_back(Copy{slot, Mark(), request, &fetch});
    const MessageHead &head = request.head;
    scatter_range(room_.device, fetch.receive->rows, room_.landing->at(slot) + sizeof head, head.offset, head.bytes, round_.stream);
    copies_.back().mark = Mark(room_.device, round_.stream);
}

void Pull::take_back(int peer, int slot) {
    auto found = std::find_if(loans_.begin(), loans_.end(), [&](const Loan &loan) { return loan.peer == peer && loan.slot == slot; });
    if (found == loans_.end()) fail(MOELINK_ERR_PROTOCOL, "rank {} has read slot {}, which it was not told of", peer, slot);
    loans_.erase(found);
    room_.ring->give_back(slot);
}

// A chunk that is in the ring, to whoever asked for it.
void Pull::hand_over(const Copy &copy) {
    MessageHead head = copy.request.head;
    if (head.kind == kind_ask_place) {
        loans_.push_back(Loan{copy.request.peer, copy.slot});
        return room_.group.send(copy.request.peer, slot_message(head, kind_place, copy.slot), round_.deadline);
    }
    head.kind = kind_chunk;
    std::memcpy(room_.ring->at(copy.slot), &head, sizeof head);
    room_.group.send(copy.request.peer, room_.ring->lend(copy.slot, head.bytes), round_.deadline);
}

// Copies end in the order in which they began.
void Pull::advance_copies() {
    while (!copies_.empty() && copies_.front().mark.passed()) {
        const Copy &copy = copies_.front();
        if (copy.fetch != nullptr) {
            room_.landing->give_back(copy.slot);
            arrived(*copy.fetch, copy.request.head.bytes);
        } else {
            hand_over(copy);
        }
        copies_.pop_front();
    }
    if (parked_.empty()) return;
    std::deque<Message> parked;
    parked.swap(parked_);
    for (const Message &message : parked) {
        MessageHead head;
        std::memcpy(&head, message.payload.data, sizeof head);
        on_message(message.from, head, message.payload);
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
    for (const Loan &loan : loans_) room_.ring->give_back(loan.slot);  // who still reads it has failed, and drops what it gets
    copies_.clear();
    loans_.clear();
    parked_.clear();
    requests_.clear();
    wanted_.clear();
    sends_.clear();
    asking_.clear();
    in_flight_ = 0;
    std::vector<std::unique_ptr<NetworkGet>> gets;
    std::vector<int> slots;
    for (Read &one : reads_) {
        gets.push_back(std::move(one.get));
        slots.push_back(one.slot);
    }
    reads_.clear();
    if (!gets.empty()) end_gets(room_.network->network(), std::move(gets));
    for (const int slot : slots) room_.landing->give_back(slot);
    if (copying) room_.device.synchronize(round_.stream);
}

}  // namespace moelink::eplb
