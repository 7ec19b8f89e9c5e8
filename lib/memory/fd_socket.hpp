// The Unix sockets under fd_exchange.cc: a listener with a private name, and messages that carry one descriptor.
#pragma once

#include "base/error.hpp"
#include "memory/fd.hpp"

#include <array>
#include <cstdint>
#include <string>

namespace moelink {

using FdToken = std::array<uint8_t, 32>;
using FdSocketName = std::array<char, 40>;  // NUL-terminated

struct FdMessage {
    FdToken token;
    int32_t rank;
    uint32_t failed;  // 1: comes without a descriptor, and none will come
};

// All sockets are non-blocking.
class FdListener {
public:
    // Binds a fresh random name, in the directory or, when it is "", in the abstract namespace.
    explicit FdListener(const std::string &directory);
    FdListener(const FdListener &) = delete;
    FdListener &operator=(const FdListener &) = delete;
    ~FdListener();

    const FdSocketName &name() const { return name_; }
    int fd() const { return socket_.get(); }
    // A connection by a process of this user; empty when none waits or a stranger's was closed.
    Fd accept();

private:
    std::string directory_;
    FdSocketName name_{};
    Fd socket_;
};

// Throws the reason why the name cannot be seen from here; local and immediate.
void require_fd_socket(const std::string &directory, const FdSocketName &name);

// Connects to a listener of this user; empty when its queue is full just now. Throws PEER_UNREACHABLE when the listener is gone.
Fd connect_fd_socket(const std::string &directory, const FdSocketName &name);

// fd -1: none. Throws PEER_UNREACHABLE when the other end is gone.
void send_fd(int socket, const FdMessage &message, int fd);

enum class Received { nothing, message, closed };
// `closed` also stands for whatever is not exactly a message with one descriptor, or a failed one with none. Throws when this
// process has no room for one.
Received receive_fd(int socket, FdMessage &message, Fd &fd);

}  // namespace moelink
