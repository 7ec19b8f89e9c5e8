// Who is let in, and what a connection notices: the handshake and the frame codes, bit by bit, and both directions of a version
// that differs, over real sockets.
#include "base/error.hpp"
#include "group/auth.hpp"
#include "group/dialer.hpp"
#include "group/hub.hpp"

#include <cstdarg>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <thread>

#include <netinet/tcp.h>

#include <asio/read.hpp>
#include <asio/write.hpp>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

constexpr uint64_t second_ns = 1'000'000'000;

struct Pair {
    Secret secret = random_secret();
    Session session = random_session();
    Hello connector = connector_hello(secret, purpose_tree, session, 3, 0);
    Hello acceptor = acceptor_hello(secret, connector);
};

template <class T>
T flipped(const T &value, size_t bit) {
    T result = value;
    reinterpret_cast<unsigned char *>(&result)[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
    return result;
}

void test_every_bit_counts(void **) {
    Pair pair;
    assert_true(connector_is_genuine(pair.secret, pair.connector));
    assert_true(acceptor_is_genuine(pair.secret, pair.connector, pair.acceptor));
    Proof proof = connector_proof(pair.secret, pair.connector, pair.acceptor);
    assert_true(proof_is_genuine(pair.secret, pair.connector, pair.acceptor, proof));
    for (size_t bit = 0; bit < 8 * sizeof(Hello); ++bit) {
        assert_false(connector_is_genuine(pair.secret, flipped(pair.connector, bit)));
        assert_false(acceptor_is_genuine(pair.secret, pair.connector, flipped(pair.acceptor, bit)));
        assert_false(acceptor_is_genuine(pair.secret, flipped(pair.connector, bit), pair.acceptor));
        assert_false(proof_is_genuine(pair.secret, flipped(pair.connector, bit), pair.acceptor, proof));
        assert_false(proof_is_genuine(pair.secret, pair.connector, flipped(pair.acceptor, bit), proof));
    }
    for (size_t bit = 0; bit < 8 * sizeof(Proof); ++bit) {
        assert_false(proof_is_genuine(pair.secret, pair.connector, pair.acceptor, flipped(proof, bit)));
    }
    for (size_t bit = 0; bit < 8 * sizeof(Secret); ++bit) {
        Secret other = flipped(pair.secret, bit);
        assert_false(connector_is_genuine(other, pair.connector));
        assert_false(acceptor_is_genuine(other, pair.connector, pair.acceptor));
        assert_false(proof_is_genuine(other, pair.connector, pair.acceptor, proof));
    }
}

// What one side says is no answer to itself: neither hello passes in the other's place, and no run repeats another.
void test_no_reflection_no_replay(void **) {
    Pair pair;
    assert_false(acceptor_is_genuine(pair.secret, pair.connector, pair.connector));
    assert_false(connector_is_genuine(pair.secret, pair.acceptor));
    Hello again = acceptor_hello(pair.secret, pair.connector);
    assert_memory_not_equal(&again.nonce, &pair.acceptor.nonce, sizeof again.nonce);
    Proof old = connector_proof(pair.secret, pair.connector, pair.acceptor);
    assert_false(proof_is_genuine(pair.secret, pair.connector, again, old));
}

void test_frames(void **) {
    Pair pair;
    const char text[] = "what a rank says";
    FrameKey out(pair.secret, pair.connector, pair.acceptor, true);
    auto in = [&] { return FrameKey(pair.secret, pair.connector, pair.acceptor, true); };
    Code first = out.next(text, sizeof text);
    Code second = out.next(text, sizeof text);
    assert_memory_not_equal(first.data(), second.data(), first.size());

    FrameKey right = in();
    assert_true(right.next_is(text, sizeof text, first));
    assert_true(right.next_is(text, sizeof text, second));
    FrameKey repeated = in();
    assert_true(repeated.next_is(text, sizeof text, first));
    assert_false(repeated.next_is(text, sizeof text, first));
    FrameKey skipped = in();
    assert_false(skipped.next_is(text, sizeof text, second));
    FrameKey shorter = in();
    assert_false(shorter.next_is(text, sizeof text - 1, first));
    FrameKey changed = in();
    assert_false(changed.next_is("what a rank Says", sizeof text, first));
    FrameKey sent_back(pair.secret, pair.connector, pair.acceptor, false);
    assert_false(sent_back.next_is(text, sizeof text, first));
}

asio::ip::tcp::endpoint local(uint16_t port) { return {asio::ip::address_v4::loopback(), port}; }

// A rank of another version knocks: it learns our version, and is not counted as a stranger, for it knows the secret.
void test_newer_connector(void **) {
    Pair pair;
    Hub hub(true);
    Address loopback = to_address(asio::ip::address_v4::loopback());
    hub.listen(&loopback);
    hub.start(pair.secret);
    asio::io_context io;
    asio::ip::tcp::socket socket(io);
    socket.connect(local(hub.endpoint().port));
    Hello newer = connector_hello(pair.secret, purpose_tree, pair.session, 1, 0, protocol_version + 6);
    asio::write(socket, asio::buffer(&newer, sizeof newer));
    Hello answer;
    asio::read(socket, asio::buffer(&answer, sizeof answer));
    assert_true(acceptor_is_genuine(pair.secret, newer, answer));
    assert_int_equal(answer.version, protocol_version);
    asio::error_code error;
    char more;
    asio::read(socket, asio::buffer(&more, 1), error);
    assert_true(error == asio::error::eof);
    assert_int_equal(hub.strangers(), 0);
}

// One end of a handshake that this test plays by hand: accepts one connection and answers with what `answer` makes of the hello.
template <class Answer>
Dialed dial_to(const Secret &secret, Answer answer) {
    asio::io_context io;
    asio::ip::tcp::acceptor acceptor(io, local(0));
    std::thread other([&] {
        asio::ip::tcp::socket socket = acceptor.accept();
        Hello connector;
        asio::error_code ignored;
        asio::read(socket, asio::buffer(&connector, sizeof connector), ignored);
        Hello hello = answer(connector);
        asio::write(socket, asio::buffer(&hello, sizeof hello), ignored);
        asio::read(socket, asio::buffer(&connector, 1), ignored);
    });
    Hub hub(true);
    Session session = random_session();
    std::promise<Dialed> promise;
    DialTarget target{"rank 0", {local(acceptor.local_endpoint().port())}, secret, purpose_tree, session, 1, 0};
    dial(hub.io(), std::move(target), Deadline::after_ns(30 * second_ns),
         [&](Dialed dialed) { promise.set_value(std::move(dialed)); });
    Dialed dialed = promise.get_future().get();
    hub.run([&] {
        if (dialed.link) dialed.link->close();
    });
    other.join();
    dialed.link.reset();
    return dialed;
}

void test_newer_acceptor(void **) {
    Secret secret = random_secret();
    Dialed dialed = dial_to(secret, [&](const Hello &connector) { return acceptor_hello(secret, connector,
                                                                                        protocol_version + 6); });
    assert_int_equal(dialed.status, MOELINK_ERR_MISMATCH);
    assert_non_null(std::strstr(dialed.text.c_str(), fmt::format("version {}", protocol_version + 6).c_str()));
    assert_non_null(std::strstr(dialed.text.c_str(), fmt::format("version {}", protocol_version).c_str()));
}

// A listener that only pretends: one with another secret, and one that sends our own hello back.
void test_false_acceptors(void **) {
    Secret secret = random_secret();
    Dialed other = dial_to(secret, [&](const Hello &connector) { return acceptor_hello(random_secret(), connector); });
    assert_int_equal(other.status, MOELINK_ERR_AUTHENTICATION);
    Dialed mirror = dial_to(secret, [&](const Hello &connector) { return connector; });
    assert_int_equal(mirror.status, MOELINK_ERR_AUTHENTICATION);
    Dialed honest = dial_to(secret, [&](const Hello &connector) { return acceptor_hello(secret, connector); });
    assert_int_equal(honest.status, MOELINK_OK);
}

// A hello that somebody has overheard opens nothing.
void test_overheard_hello(void **) {
    Pair pair;
    Hub hub(true);
    Address loopback = to_address(asio::ip::address_v4::loopback());
    hub.listen(&loopback);
    hub.start(pair.secret);
    asio::io_context io;
    asio::ip::tcp::socket socket(io);
    socket.connect(local(hub.endpoint().port));
    asio::write(socket, asio::buffer(&pair.connector, sizeof pair.connector));
    Hello answer;
    asio::read(socket, asio::buffer(&answer, sizeof answer));
    Proof old = connector_proof(pair.secret, pair.connector, pair.acceptor);
    asio::write(socket, asio::buffer(old));
    asio::error_code error;
    char more;
    asio::read(socket, asio::buffer(&more, 1), error);
    assert_true(static_cast<bool>(error));
    assert_int_equal(hub.strangers(), 1);
}

class Loss final : public Link::Owner {
public:
    void on_frame(Link &, uint32_t, Bytes) override {}
    void on_lost(Link &, moelink_status status, const std::string &) override { promise.set_value(status); }
    std::promise<moelink_status> promise;
};

// Who connects for a group that is over does not hang on; who comes early waits for it.
void test_late_connections(void **) {
    constexpr std::chrono::seconds patience{30};
    const Secret secret = random_secret();
    const Session early = random_session();
    const Session late = random_session();
    Address loopback = to_address(asio::ip::address_v4::loopback());
    Hub hub(true);
    hub.listen(&loopback);
    hub.start(secret);
    std::promise<int> arrived;
    const auto take = [&](std::shared_ptr<Link> link, const Hello &hello) {
        link->close();
        arrived.set_value(hello.from);
    };
    hub.run([&] {
        hub.expect(late, take);
        hub.forget(late);
    });
    Hub far(true);
    Loss losses[2];
    std::shared_ptr<Link> links[2];
    for (int i = 0; i < 2; ++i) {
        links[i] = far.dial({"rank 0", candidates(hub.endpoint()), secret, purpose_tree, i == 0 ? early : late, 1, 0},
                            Deadline::after_ns(30 * second_ns));
        far.run([&] { links[i]->start(&losses[i]); });
    }
    unsigned most_ms = 0;
    socklen_t size = sizeof most_ms;
    far.run([&] {
        auto &socket = const_cast<asio::ip::tcp::socket &>(links[0]->socket());
        getsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &most_ms, &size);
    });
    assert_int_equal(most_ms, 15000);
    auto lost = losses[1].promise.get_future();
    assert_true(lost.wait_for(patience) == std::future_status::ready);
    assert_int_equal(lost.get(), MOELINK_ERR_PEER_EXITED);
    hub.run([&] { hub.expect(early, take); });
    auto came = arrived.get_future();
    assert_true(came.wait_for(patience) == std::future_status::ready);
    assert_int_equal(came.get(), 1);
    far.run([&] { links[0]->close(); });
}

}  // namespace

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_bit_counts),
        cmocka_unit_test(test_no_reflection_no_replay),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_newer_connector),
        cmocka_unit_test(test_newer_acceptor),
        cmocka_unit_test(test_false_acceptors),
        cmocka_unit_test(test_overheard_hello),
        cmocka_unit_test(test_late_connections),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
