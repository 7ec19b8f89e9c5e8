#include "group/auth.hpp"

#include "base/error.hpp"

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <string_view>

#include <sodium.h>

namespace moelink {

namespace {

constexpr char hello_magic[8] = {'m', 'o', 'e', 'l', 'i', 'n', 'k', '\0'};
constexpr size_t hello_covered = offsetof(Hello, code);
static_assert(std::is_trivially_copyable_v<Hello>);

struct Span {
    const void *data;
    size_t bytes;
};

void start_sodium() {
    static const int started = sodium_init();
    if (started < 0) fail(MOELINK_ERR_INTERNAL, "libsodium could not be initialised");
}

template <size_t N>
void keyed_hash(std::array<uint8_t, N> &out, const Secret &key, std::string_view label, std::initializer_list<Span> parts) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, key.data(), key.size(), N);
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char *>(label.data()), label.size());
    for (const Span &part : parts) crypto_generichash_update(&state, static_cast<const unsigned char *>(part.data), part.bytes);
    crypto_generichash_final(&state, out.data(), N);
}

template <size_t N>
bool same(const std::array<uint8_t, N> &a, const std::array<uint8_t, N> &b) {
    return sodium_memcmp(a.data(), b.data(), N) == 0;
}

Proof connector_code(const Secret &secret, const Hello &connector) {
    Proof code;
    keyed_hash(code, secret, "moelink connector hello", {{&connector, hello_covered}});
    return code;
}

Proof acceptor_code(const Secret &secret, const Hello &connector, const Hello &acceptor) {
    Proof code;
    keyed_hash(code, secret, "moelink acceptor hello", {{&connector, sizeof connector}, {&acceptor, hello_covered}});
    return code;
}

}  // namespace

void random_bytes(void *out, size_t bytes) {
    start_sodium();
    randombytes_buf(out, bytes);
}

Secret random_secret() {
    Secret secret;
    random_bytes(secret.data(), secret.size());
    return secret;
}

Session random_session() {
    Session session;
    random_bytes(session.data(), session.size());
    return session;
}

Session derive_session(const Secret &secret, const void *data, size_t bytes) {
    start_sodium();
    Session session;
    keyed_hash(session, secret, "moelink session", {{data, bytes}});
    return session;
}

Hello connector_hello(const Secret &secret, Purpose purpose, const Session &session, int32_t from, int32_t to, uint32_t version) {
    Hello hello{};
    std::memcpy(hello.magic, hello_magic, sizeof hello_magic);
    hello.version = version;
    hello.role = 1;
    hello.session = session;
    random_bytes(hello.nonce.data(), hello.nonce.size());
    hello.purpose = purpose;
    hello.from = from;
    hello.to = to;
    hello.code = connector_code(secret, hello);
    return hello;
}

bool is_hello(const Hello &hello) { return std::memcmp(hello.magic, hello_magic, sizeof hello_magic) == 0; }

bool connector_is_genuine(const Secret &secret, const Hello &connector) {
    return is_hello(connector) && connector.role == 1 && same(connector.code, connector_code(secret, connector));
}

Hello acceptor_hello(const Secret &secret, const Hello &connector, uint32_t version) {
    Hello hello = connector;
    hello.version = version;
    hello.role = 2;
    random_bytes(hello.nonce.data(), hello.nonce.size());
    hello.code = acceptor_code(secret, connector, hello);
    return hello;
}

bool acceptor_is_genuine(const Secret &secret, const Hello &connector, const Hello &acceptor) {
    return is_hello(acceptor) && acceptor.role == 2 && same(acceptor.code, acceptor_code(secret, connector, acceptor));
}

Proof connector_proof(const Secret &secret, const Hello &connector, const Hello &acceptor) {
    Proof proof;
    keyed_hash(proof, secret, "moelink connector proof", {{&connector, sizeof connector}, {&acceptor, sizeof acceptor}});
    return proof;
}

bool proof_is_genuine(const Secret &secret, const Hello &connector, const Hello &acceptor, const Proof &proof) {
    return same(proof, connector_proof(secret, connector, acceptor));
}

FrameKey::FrameKey(const Secret &secret, const Hello &connector, const Hello &acceptor, bool from_connector) {
    keyed_hash(key_, secret, from_connector ? "moelink frames of the connector" : "moelink frames of the acceptor",
               {{&connector, sizeof connector}, {&acceptor, sizeof acceptor}});
}

// Poly1305 with a key for each code, which ChaCha20 makes of the connection's key and the running number.
// Source: RFC 8439, 2.6, with the number as nonce.
Code FrameKey::next(const void *data, uint64_t bytes) {
    const uint64_t number = count_++;
    std::array<uint8_t, crypto_stream_chacha20_NONCEBYTES> nonce;
    static_assert(sizeof nonce == sizeof number);
    std::memcpy(nonce.data(), &number, sizeof number);
    std::array<uint8_t, crypto_onetimeauth_poly1305_KEYBYTES> once;
    crypto_stream_chacha20(once.data(), once.size(), nonce.data(), key_.data());
    Code code;
    static_assert(sizeof code == crypto_onetimeauth_poly1305_BYTES);
    crypto_onetimeauth_poly1305(code.data(), static_cast<const uint8_t *>(data), bytes, once.data());
    sodium_memzero(once.data(), once.size());
    return code;
}

bool FrameKey::next_is(const void *data, uint64_t bytes, const Code &code) { return same(code, next(data, bytes)); }

}  // namespace moelink
