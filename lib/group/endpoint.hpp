// Where a listener can be reached: its port and every address of its host that may lead to it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <asio/ip/tcp.hpp>

namespace moelink {

// 17 bytes as they travel: IPv4 in the first four.
struct Address {
    uint8_t family;  // 4 or 6; 0: none
    std::array<uint8_t, 16> bytes;
};
static_assert(sizeof(Address) == 17);

// The same for all processes that share a loopback: of one boot of one machine, in one network namespace. Zero when unknown.
using NetworkId = std::array<uint8_t, 16>;

struct Endpoint {
    static constexpr int most = 9;
    NetworkId network;  // where it listens
    uint16_t port;
    uint8_t count;
    uint8_t named;  // 1: the user named one interface, and listeners of ranks stay on that network too
    std::array<Address, most> addresses;
    uint8_t reserved;
};
static_assert(sizeof(Endpoint) == 174);

Address to_address(const asio::ip::address &address);
asio::ip::address from_address(const Address &address);  // throws Error for a family that does not exist

NetworkId this_network();

// Loopback first, then the addresses of all interfaces that are up, IPv4 first.
std::vector<Address> own_addresses();

// The address that a user means by "10.0.0.5", "fe80::1" or "eth0"; throws Error INVALID_ARGUMENT with the names there are.
Address named_address(const std::string &name);

// Addresses to try, in order: loopback first in the same network, never in another one.
std::vector<asio::ip::tcp::endpoint> candidates(const Endpoint &endpoint);

std::string endpoint_text(const asio::ip::tcp::endpoint &endpoint);

}  // namespace moelink
