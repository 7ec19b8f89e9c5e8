#include "memory/fd_socket.hpp"

#include <sodium.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

namespace moelink {

namespace {

struct Address {
    sockaddr_un un{};
    socklen_t length = 0;
    const sockaddr *get() const { return reinterpret_cast<const sockaddr *>(&un); }
};

std::string path_of(const std::string &directory, const FdSocketName &name) { return directory + "/" + name.data(); }

Address address_of(const std::string &directory, const FdSocketName &name) {
    Address address;
    address.un.sun_family = AF_UNIX;
    // An abstract name begins with a zero byte and has no end mark.
    std::string path = directory.empty() ? std::string(1, '\0') + name.data() : path_of(directory, name);
    if (path.size() >= sizeof address.un.sun_path) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "socket_dir {} is too long: {} bytes with the socket's name, and a path may have {}",
             directory, path.size(), sizeof address.un.sun_path - 1);
    }
    std::memcpy(address.un.sun_path, path.data(), path.size());
    address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + (directory.empty() ? 0 : 1));
    return address;
}

Fd make_socket() {
    Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) fail(errno_status(errno, MOELINK_ERR_UNSUPPORTED), "{}", errno_text("socket(AF_UNIX)", errno));
    return fd;
}

bool is_own_user(int socket, uint32_t *uid) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "{}", errno_text("SO_PEERCRED", errno));
    }
    *uid = peer.uid;
    return peer.uid == geteuid();
}

}  // namespace

FdListener::FdListener(const std::string &directory) : directory_(directory), socket_(make_socket()) {
    if (sodium_init() < 0) fail(MOELINK_ERR_INTERNAL, "libsodium cannot be initialised");
    uint8_t random[12];
    randombytes_buf(random, sizeof random);
    char text[2 * sizeof random + 1];
    sodium_bin2hex(text, sizeof text, random, sizeof random);
    std::string name = std::string("moelink-") + text;
    std::memcpy(name_.data(), name.c_str(), name.size() + 1);

    Address address = address_of(directory_, name_);
    if (!directory_.empty()) fchmod(socket_.get(), 0600);  // becomes the mode of the file
    if (bind(socket_.get(), address.get(), address.length) != 0) {
        int error = errno;
        std::string where = directory_.empty() ? "bind to an abstract socket" : "bind to " + path_of(directory_, name_);
        socket_.close();
        fail(MOELINK_ERR_UNSUPPORTED, "{}", errno_text(where.c_str(), error));
    }
    if (listen(socket_.get(), SOMAXCONN) != 0) {
        int error = errno;
        if (!directory_.empty()) unlink(path_of(directory_, name_).c_str());
        fail(MOELINK_ERR_UNSUPPORTED, "{}", errno_text("listen", error));
    }
}

FdListener::~FdListener() {
    if (!directory_.empty()) unlink(path_of(directory_, name_).c_str());
}

Fd FdListener::accept() {
    Fd fd(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ECONNABORTED) return {};
        fail(errno_status(errno, MOELINK_ERR_UNSUPPORTED), "{}", errno_text("accept", errno));
    }
    uint32_t uid = 0;
    if (!is_own_user(fd.get(), &uid)) return {};
    return fd;
}

void require_fd_socket(const std::string &directory, const FdSocketName &name) {
    if (directory.empty()) return;
    struct stat info;
    std::string path = path_of(directory, name);
    if (stat(path.c_str(), &info) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "{}; socket_dir must be one directory for all ranks",
             errno_text(path.c_str(), errno));
    }
    if (!S_ISSOCK(info.st_mode)) fail(MOELINK_ERR_UNSUPPORTED, "{} is no socket", path);
}

Fd connect_fd_socket(const std::string &directory, const FdSocketName &name) {
    Fd fd = make_socket();
    Address address = address_of(directory, name);
    if (connect(fd.get(), address.get(), address.length) != 0) {
        if (errno == EAGAIN || errno == EINTR) return {};
        const bool gone = errno == ECONNREFUSED || errno == ENOENT;
        fail(gone ? MOELINK_ERR_PEER_UNREACHABLE : MOELINK_ERR_UNSUPPORTED, "{}", errno_text("connect", errno));
    }
    uint32_t uid = 0;
    if (!is_own_user(fd.get(), &uid)) {
        fail(MOELINK_ERR_UNSUPPORTED, "the socket belongs to user {}, and this process to user {}", uid, geteuid());
    }
    return fd;
}

void send_fd(int socket, const FdMessage &message, int fd) {
    FdMessage copy = message;
    iovec part{&copy, sizeof copy};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (fd >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        cmsghdr *first = CMSG_FIRSTHDR(&header);
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(first), &fd, sizeof fd);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket, &header, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent != static_cast<ssize_t>(sizeof copy)) {
        const int error = sent < 0 ? errno : EMSGSIZE;
        const bool gone = error == EPIPE || error == ECONNRESET;
        fail(gone ? MOELINK_ERR_PEER_UNREACHABLE : MOELINK_ERR_UNSUPPORTED, "{}", errno_text("sendmsg with a file descriptor", error));
    }
}

Received receive_fd(int socket, FdMessage &message, Fd &fd) {
    iovec part{&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    ssize_t got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return Received::nothing;
    if (got < 0) return Received::closed;
    int count = 0;
    for (cmsghdr *item = CMSG_FIRSTHDR(&header); item != nullptr; item = CMSG_NXTHDR(&header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
        size_t number = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < number; ++i, ++count) {
            int one = -1;
            std::memcpy(&one, CMSG_DATA(item) + i * sizeof(int), sizeof one);
            fd = Fd(one);  // an earlier one is closed
        }
    }
    bool whole = got == static_cast<ssize_t>(sizeof message) && (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 &&
                 count == (message.failed == 0 ? 1 : 0);
    if (whole) return Received::message;
    fd = Fd();
    if (got > 0 && count == 0 && (header.msg_flags & MSG_CTRUNC) != 0) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "a file descriptor came, but this process may have no more of them (ulimit -n)");
    }
    return Received::closed;
}

}  // namespace moelink
