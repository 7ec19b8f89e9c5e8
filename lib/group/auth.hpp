// Who is at the other end: mutual challenge-response over a shared secret, and the keys that keep a connection authenticated.
//
// The connector sends a Hello, the acceptor answers with its own, the connector sends a proof. The first Hello carries a code
// made with the secret, so that a stranger learns nothing at all, not even a version; freshness comes from the other two,
// which cover both nonces. The layout of Hello and the way its code is made never change with the protocol version, so that
// two versions can tell each other who they are.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moelink {

constexpr uint32_t protocol_version = 2;

using Secret = std::array<uint8_t, 32>;
using Session = std::array<uint8_t, 16>;  // names one group; every split has its own
using Proof = std::array<uint8_t, 32>;
using Code = std::array<uint8_t, 16>;     // authenticates one part of a frame

enum Purpose : uint32_t {
    purpose_rendezvous = 1,
    purpose_tree = 2,
    purpose_peer = 3,  // messages from one rank to another
};

struct Hello {
    char magic[8];
    uint32_t version;
    uint32_t role;  // 1 connector, 2 acceptor
    Session session;
    std::array<uint8_t, 32> nonce;
    uint32_t purpose;
    int32_t from;
    int32_t to;
    std::array<uint8_t, 20> reserved;
    Proof code;
};
static_assert(sizeof(Hello) == 128);

void random_bytes(void *out, size_t bytes);
Secret random_secret();
Session random_session();

// A new name derived from a secret and any bytes.
Session derive_session(const Secret &secret, const void *data, size_t bytes);

// Another version than this library's own is for tests.
Hello connector_hello(const Secret &secret, Purpose purpose, const Session &session, int32_t from, int32_t to,
                      uint32_t version = protocol_version);
bool is_hello(const Hello &hello);  // by its magic
bool connector_is_genuine(const Secret &secret, const Hello &connector);
Hello acceptor_hello(const Secret &secret, const Hello &connector, uint32_t version = protocol_version);
bool acceptor_is_genuine(const Secret &secret, const Hello &connector, const Hello &acceptor);
Proof connector_proof(const Secret &secret, const Hello &connector, const Hello &acceptor);
bool proof_is_genuine(const Secret &secret, const Hello &connector, const Hello &acceptor, const Proof &proof);

// One direction of an authenticated connection: codes over a running number and the bytes, so that nothing can be
// changed, left out, repeated or sent back.
class FrameKey {
public:
    FrameKey() = default;
    FrameKey(const Secret &secret, const Hello &connector, const Hello &acceptor, bool from_connector);
    Code next(const void *data, uint64_t bytes);
    bool next_is(const void *data, uint64_t bytes, const Code &code);

private:
    std::array<uint8_t, 32> key_{};
    uint64_t count_ = 0;
};

}  // namespace moelink
