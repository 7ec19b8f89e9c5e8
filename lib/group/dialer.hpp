// Connects to a listener that may be reached at several addresses: one after the other, the next one as soon as the last has
// failed or has kept us waiting; the first that proves that it knows the secret wins.
#pragma once

#include "base/deadline.hpp"
#include "group/endpoint.hpp"
#include "group/link.hpp"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <asio/io_context.hpp>

namespace moelink {

struct Dialed {
    std::shared_ptr<Link> link;  // NULL: status and text say why
    moelink_status status = MOELINK_OK;
    std::string text;
};

struct DialTarget {
    std::string name;  // "the rendezvous", "rank 3"
    std::vector<asio::ip::tcp::endpoint> addresses;
    Secret secret;
    Purpose purpose;
    Session session;
    int32_t from;
    int32_t to;
};

// Calls done once, on the I/O thread, by the deadline at the latest. May be called from any thread.
void dial(asio::io_context &io, DialTarget target, const Deadline &deadline, std::function<void(Dialed)> done);

}  // namespace moelink
