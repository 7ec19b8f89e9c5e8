#include "group/bootstrap.hpp"

#include "base/guard.hpp"
#include "base/params.hpp"
#include "group/place.hpp"
#include "group/rendezvous.hpp"
#include "group/socket_transport.hpp"
#include "group/thread_transport.hpp"

#include <chrono>
#include <future>
#include <thread>

#include <unistd.h>

namespace moelink {

namespace {

// The server says itself when a rank's time is up, and who is missing; beyond that it is given this long.
constexpr std::chrono::seconds server_patience{1};

Ref<Group> alone(Group::Place place) {
    return Ref<Group>::adopt(new Group(std::move(place), std::move(make_thread_transports(1).front())));
}

Ref<Group> connected(Group::Place place, SocketTransport::Plan plan, const Deadline &deadline) {
    auto transport = std::make_unique<SocketTransport>(std::move(plan));
    transport->open(deadline);
    return Ref<Group>::adopt(new Group(std::move(place), std::move(transport)));
}

// A rank's end of its connection to the rendezvous: one answer, or the loss of the connection.
class Visit final : public Link::Owner {
public:
    struct Answer {
        moelink_status status;
        std::string text;
        Bytes table;
    };

    std::future<Answer> answer() { return promise_.get_future(); }

    void on_frame(Link &, uint32_t type, Bytes payload) override {
        Refusal refusal;
        if (type == frame_table) {
            give({MOELINK_OK, {}, std::move(payload)});
        } else if (type == frame_refuse && payload.size() >= sizeof refusal) {
            std::memcpy(&refusal, payload.data(), sizeof refusal);
            give({refusal.status, std::string(payload.begin() + sizeof refusal, payload.end()), {}});
        } else {
            give({MOELINK_ERR_PROTOCOL, fmt::format("the rendezvous sent a frame of type {}, which is not known", type), {}});
        }
    }

    void on_lost(Link &, moelink_status, const std::string &text) override {
        give({MOELINK_ERR_PEER_UNREACHABLE, "the rendezvous is gone: " + text, {}});
    }

private:
    void give(Answer answer) {
        if (!std::exchange(given_, true)) promise_.set_value(std::move(answer));
    }

    std::promise<Answer> promise_;
    bool given_ = false;
};

std::vector<Endpoint> visit(Hub &hub, const std::shared_ptr<Link> &link, const Group::Place &place, const Deadline &deadline) {
    auto visit = std::make_shared<Visit>();
    auto answered = visit->answer();
    hub.run([&] {
        Join join{place.rank, place.size, place.device, static_cast<int32_t>(::getpid()), deadline.left_ns(), hub.endpoint(), {}};
        auto frame = std::make_shared<Bytes>(sizeof join);
        std::memcpy(frame->data(), &join, sizeof join);
        link->start(visit.get());
        link->send(frame_join, std::move(frame));
    });
    bool came = answered.wait_until(deadline.at() + server_patience) == std::future_status::ready;
    hub.run([&] { hub.finish(link); });
    if (!came) fail(MOELINK_ERR_TIMEOUT, "the rendezvous does not answer any more; it did not say which ranks are missing");
    Visit::Answer answer = answered.get();
    if (answer.status != MOELINK_OK) throw Error(answer.status, answer.text);
    std::vector<Endpoint> endpoints(static_cast<size_t>(place.size));
    if (answer.table.size() != endpoints.size() * sizeof(Endpoint)) {
        fail(MOELINK_ERR_PROTOCOL, "the rendezvous sent {} bytes about {} ranks", answer.table.size(), place.size);
    }
    std::memcpy(endpoints.data(), answer.table.data(), answer.table.size());
    return endpoints;
}

// To be woken takes longer than a message between two processes. Ranks with a GPU each have cores to spare; others may outnumber them.
bool watchful(const Group::Place &place) { return place.device == MOELINK_DEVICE_CUDA && std::thread::hardware_concurrency() >= 8; }

// What ranks tell each other through the caller's allgather.
struct Card {
    char magic[8];
    uint32_t version;
    int32_t status;  // of this rank's own preparations
    int32_t rank;
    int32_t size;
    int32_t device;
    uint32_t reserved;
    Session session;  // rank 0's counts
    Secret secret;
    Endpoint endpoint;
    char text[250];
};
static_assert(sizeof(Card) == 504);
constexpr char card_magic[8] = {'m', 'o', 'e', 'c', 'a', 'r', 'd', '\n'};

void check_cards(const std::vector<Card> &cards) {
    for (size_t i = 0; i < cards.size(); ++i) {
        const Card &card = cards[i];
        auto rank = static_cast<int>(i);
        if (std::memcmp(card.magic, card_magic, sizeof card_magic) != 0) {
            fail(MOELINK_ERR_PROTOCOL, "the caller's allgather did not deliver what rank {} gave", rank);
        }
        if (card.version != protocol_version) {
            fail(MOELINK_ERR_MISMATCH, "rank {} speaks protocol version {}, this library speaks version {}; use the same library "
                                       "on all ranks",
                 rank, card.version, protocol_version);
        }
    }
    for (size_t i = 0; i < cards.size(); ++i) {
        const Card &card = cards[i];
        auto rank = static_cast<int>(i);
        if (card.rank != rank) {
            fail(MOELINK_ERR_MISMATCH, "the caller's allgather delivered rank {} at place {}: two ranks have one number, or it "
                                       "does not keep the order",
                 card.rank, rank);
        }
        if (card.size != cards[0].size) {
            fail(MOELINK_ERR_MISMATCH, "rank 0 says that the group has {} ranks, rank {} says {}", cards[0].size, rank,
                 card.size);
        }
    }
    for (size_t i = 0; i < cards.size(); ++i) {
        if (cards[i].status != MOELINK_OK) throw Error(cards[i].status, fmt::format("rank {}: {}", i, cards[i].text));
    }
    for (size_t i = 0; i < cards.size(); ++i) {
        if (cards[i].device != cards[0].device) {
            throw Error(MOELINK_ERR_MISMATCH, device_contradiction(0, cards[0].device, static_cast<int>(i), cards[i].device));
        }
    }
}

std::vector<Card> exchange(const moelink_bootstrap &boot, const Card &mine, int size, const Deadline &deadline) {
    std::vector<Card> cards(static_cast<size_t>(size));
    moelink_status status = boot.allgather(boot.user, &mine, cards.data(), sizeof mine, deadline.left_ns());
    if (status < MOELINK_OK) throw Error(status, fmt::format("the caller's allgather failed: {}", moelink_status_string(status)));
    if (status > MOELINK_OK) fail(MOELINK_ERR_INVALID_ARGUMENT, "the caller's allgather returned {}, which is neither 0 nor an "
                                                                "error", status);
    return cards;
}

}  // namespace

Ref<Group> join_by_id(const moelink_unique_id &bytes, Group::Place place) {
    auto deadline = Deadline::after_ns(place.timeout_ns);
    UniqueId id = decode(bytes);
    if (place.size != id.size) {
        fail(MOELINK_ERR_MISMATCH, "rank {} says that the group has {} ranks, its unique id was made for {}", place.rank,
             place.size, id.size);
    }
    if (place.size == 1) return alone(std::move(place));

    auto hub = std::make_shared<Hub>(watchful(place));
    auto link = hub->dial({"the rendezvous", candidates(id.endpoint), id.secret, purpose_rendezvous, id.session, place.rank, -1},
                          deadline);
    if (id.endpoint.named != 0) {
        Address here = to_address(link->socket().local_endpoint().address());
        hub->listen(&here);
    } else {
        hub->listen(nullptr);
    }
    hub->start(id.secret);
    std::vector<Endpoint> endpoints = visit(*hub, link, place, deadline);
    int rank = place.rank;
    return connected(std::move(place), {hub, id.secret, id.session, rank, std::move(endpoints)}, deadline);
}

Ref<Group> join_with(const moelink_bootstrap &boot, Group::Place place) {
    auto deadline = Deadline::after_ns(place.timeout_ns);
    if (place.size == 1) return alone(std::move(place));

    Card mine{};
    std::memcpy(mine.magic, card_magic, sizeof card_magic);
    mine.version = protocol_version;
    mine.rank = place.rank;
    mine.size = place.size;
    mine.device = place.device;
    std::shared_ptr<Hub> hub;
    const Outcome prepared = attempt([&] {
        hub = std::make_shared<Hub>(watchful(place));
        hub->listen(nullptr);
        mine.endpoint = hub->endpoint();
        if (place.rank == 0) {
            mine.session = random_session();
            mine.secret = random_secret();
        }
    });
    // The others are told, instead of waiting for this rank.
    mine.status = prepared.status;
    write_text(prepared.text, mine.text, sizeof mine.text);
    std::vector<Card> cards = exchange(boot, mine, place.size, deadline);
    check_cards(cards);
    if (prepared.status != MOELINK_OK) throw Error(prepared.status, prepared.text);  // another's card came in place of this rank's
    hub->start(cards[0].secret);
    std::vector<Endpoint> endpoints;
    for (const Card &card : cards) endpoints.push_back(card.endpoint);
    int rank = place.rank;
    return connected(std::move(place), {hub, cards[0].secret, cards[0].session, rank, std::move(endpoints)}, deadline);
}

std::vector<Ref<Group>> make_threads(std::vector<Group::Place> places) {
    for (const Group::Place &place : places) {
        if (place.device != places[0].device) {
            throw Error(MOELINK_ERR_MISMATCH, device_contradiction(0, places[0].device, place.rank, place.device));
        }
    }
    auto transports = make_thread_transports(static_cast<int>(places.size()));
    std::vector<Ref<Group>> groups;
    for (size_t i = 0; i < places.size(); ++i) {
        groups.push_back(Ref<Group>::adopt(new Group(std::move(places[i]), std::move(transports[i]))));
    }
    return groups;
}

}  // namespace moelink
