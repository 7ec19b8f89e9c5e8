#include "group/endpoint.hpp"

#include "base/error.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/stat.h>

namespace moelink {

namespace {

struct Interface {
    std::string name;
    asio::ip::address address;
};

// Addresses of interfaces that are up. Link-local IPv6 needs a scope that means nothing on another host, so it is left out.
std::vector<Interface> interfaces() {
    ifaddrs *list = nullptr;
    if (getifaddrs(&list) != 0) return {};
    std::unique_ptr<ifaddrs, void (*)(ifaddrs *)> owner(list, freeifaddrs);
    std::vector<Interface> found;
    for (const ifaddrs *one = list; one != nullptr; one = one->ifa_next) {
        if (one->ifa_addr == nullptr || (one->ifa_flags & IFF_UP) == 0) continue;
        if (one->ifa_addr->sa_family == AF_INET) {
            asio::ip::address_v4::bytes_type bytes;
            std::memcpy(bytes.data(), &reinterpret_cast<const sockaddr_in *>(one->ifa_addr)->sin_addr, bytes.size());
            found.push_back({one->ifa_name, asio::ip::address_v4(bytes)});
        } else if (one->ifa_addr->sa_family == AF_INET6) {
            asio::ip::address_v6::bytes_type bytes;
            std::memcpy(bytes.data(), &reinterpret_cast<const sockaddr_in6 *>(one->ifa_addr)->sin6_addr, bytes.size());
            asio::ip::address_v6 address(bytes);
            if (!address.is_link_local()) found.push_back({one->ifa_name, address});
        }
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Interface &a, const Interface &b) { return a.address.is_v4() && !b.address.is_v4(); });
    return found;
}

}  // namespace

Address to_address(const asio::ip::address &given) {
    asio::ip::address address = given;
    if (address.is_v6() && address.to_v6().is_v4_mapped()) {
        address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
    }
    Address result{};
    if (address.is_v4()) {
        auto bytes = address.to_v4().to_bytes();
        result.family = 4;
        std::copy(bytes.begin(), bytes.end(), result.bytes.begin());
    } else {
        result.family = 6;
        result.bytes = address.to_v6().to_bytes();
    }
    return result;
}

asio::ip::address from_address(const Address &address) {
    if (address.family == 6) return asio::ip::address_v6(address.bytes);
    if (address.family != 4) fail(MOELINK_ERR_PROTOCOL, "an address of family {} is neither IPv4 nor IPv6", address.family);
    asio::ip::address_v4::bytes_type bytes;
    std::copy_n(address.bytes.begin(), bytes.size(), bytes.begin());
    return asio::ip::address_v4(bytes);
}

NetworkId this_network() {
    NetworkId network{};
    std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen("/proc/sys/kernel/random/boot_id", "re"), std::fclose);
    if (!file) return network;
    size_t digits = 0;
    for (int c = std::fgetc(file.get()); c != EOF && digits < 32; c = std::fgetc(file.get())) {
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (value < 0) continue;
        network[digits / 2] = static_cast<uint8_t>(network[digits / 2] << 4 | value);
        ++digits;
    }
    struct stat info;
    uint64_t of_namespace = ::stat("/proc/self/ns/net", &info) == 0 ? info.st_ino : 0;
    for (size_t i = 0; i < sizeof of_namespace; ++i) network[i] ^= static_cast<uint8_t>(of_namespace >> 8 * i);
    return network;
}

std::vector<Address> own_addresses() {
    std::vector<Address> result{to_address(asio::ip::address_v4::loopback())};
    for (const Interface &one : interfaces()) {
        if (!one.address.is_loopback() && result.size() < Endpoint::most) result.push_back(to_address(one.address));
    }
    return result;
}

Address named_address(const std::string &name) {
    asio::error_code error;
    asio::ip::address address = asio::ip::make_address(name, error);
    if (!error) return to_address(address);
    std::string names;
    for (const Interface &one : interfaces()) {
        if (one.name == name) return to_address(one.address);
        names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", one.name, one.address.to_string());
    }
    fail(MOELINK_ERR_INVALID_ARGUMENT, "\"{}\" is neither an address nor an interface of this host that is up and has one; there "
                                       "are: {}",
         name, names);
}

std::vector<asio::ip::tcp::endpoint> candidates(const Endpoint &endpoint) {
    const NetworkId here = this_network();
    bool unknown = here == NetworkId{} || endpoint.network == NetworkId{};
    bool local = unknown || here == endpoint.network;
    std::vector<asio::ip::tcp::endpoint> result;
    int count = std::min<int>(endpoint.count, Endpoint::most);
    for (int i = 0; i < count; ++i) {
        asio::ip::address address = from_address(endpoint.addresses[static_cast<size_t>(i)]);
        if (address.is_loopback() && !local && count > 1) continue;
        result.emplace_back(address, endpoint.port);
    }
    return result;
}

std::string endpoint_text(const asio::ip::tcp::endpoint &endpoint) {
    asio::ip::address address = endpoint.address();
    if (address.is_v6() && address.to_v6().is_v4_mapped()) {
        address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
    }
    return address.is_v6() ? fmt::format("[{}]:{}", address.to_string(), endpoint.port())
                           : fmt::format("{}:{}", address.to_string(), endpoint.port());
}

}  // namespace moelink
