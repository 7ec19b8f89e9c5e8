#include "group/link.hpp"

#include "base/error.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <asio/read.hpp>
#include <asio/write.hpp>

namespace moelink {

namespace {

constexpr size_t buffer_bytes = 16 << 10;
constexpr int keep_idle_s = 5, keep_interval_s = 2, keep_count = 5;
constexpr size_t most_frames_a_write = 16;  // 3 pieces each; one system call takes 64

}  // namespace

void close_on_exec(int descriptor) { ::fcntl(descriptor, F_SETFD, FD_CLOEXEC); }

void prepare_socket(asio::ip::tcp::socket &socket) {
    close_on_exec(socket.native_handle());
    auto set = [&](int level, int name, int value) { ::setsockopt(socket.native_handle(), level, name, &value, sizeof value); };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, keep_idle_s);
    set(IPPROTO_TCP, TCP_KEEPINTVL, keep_interval_s);
    set(IPPROTO_TCP, TCP_KEEPCNT, keep_count);
}

Link::Link(asio::ip::tcp::socket socket, const FrameKey &in, const FrameKey &out, int peer)
    : socket_(std::move(socket)), in_key_(in), out_key_(out), peer_(peer) {
    // While bytes are unacknowledged nothing is probed, and the system would go on sending them for a quarter of an hour.
    const unsigned most_ms = (keep_idle_s + keep_interval_s * keep_count) * 1000;
    ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &most_ms, sizeof most_ms);
}

void Link::start(Owner *owner) {
    owner_ = owner;
    in_.resize(buffer_bytes);
    read();
}

void Link::send(uint32_t type, Payload payload) {
    if (!socket_.is_open() || finishing_) return;
    Outgoing out;
    out.head.head = {type, 0, payload.bytes};
    out.head.code = out_key_.next(&out.head.head, sizeof out.head.head);
    if (out.head.head.bytes != 0) out.code = out_key_.next(payload.data, payload.bytes);
    out.payload = std::move(payload);
    queue_.push_back(std::move(out));
    if (writing_ == 0) write();
}

void Link::write() {
    std::vector<asio::const_buffer> pieces;
    writing_ = std::min(queue_.size(), most_frames_a_write);
    for (size_t i = 0; i < writing_; ++i) {
        const Outgoing &out = queue_[i];
        pieces.push_back(asio::buffer(&out.head, sizeof out.head));
        if (out.head.head.bytes == 0) continue;
        pieces.push_back(asio::buffer(out.payload.data, out.payload.bytes));
        pieces.push_back(asio::buffer(out.code));
    }
    asio::async_write(socket_, pieces, [self = shared_from_this()](const asio::error_code &error, size_t) {
        if (error) {
            self->queue_.clear();
            self->writing_ = 0;
            // What the other end said before it went is still to be read; the reader reports the loss.
            if (self->finishing_ || self->owner_ == nullptr) self->close();
            return;
        }
        self->queue_.erase(self->queue_.begin(), self->queue_.begin() + static_cast<ptrdiff_t>(self->writing_));
        self->writing_ = 0;
        if (!self->queue_.empty()) {
            self->write();
        } else if (self->finishing_) {
            self->close();
        }
    });
}

void Link::finish(std::function<void()> closed) {
    owner_ = nullptr;
    closed_ = std::move(closed);
    finishing_ = true;
    if (writing_ == 0) close();
}

void Link::close() {
    owner_ = nullptr;
    asio::error_code ignored;
    if (socket_.is_open()) {
        socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
        socket_.close(ignored);
    }
    if (auto closed = std::exchange(closed_, {})) closed();
}

void Link::read() {
    if (begin_ > 0) {
        std::memmove(in_.data(), in_.data() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
    }
    socket_.async_read_some(asio::buffer(in_.data() + end_, in_.size() - end_),
                            [self = shared_from_this()](const asio::error_code &error, size_t bytes) {
                                if (self->owner_ == nullptr) return;
                                if (error) return self->lost(error);
                                self->end_ += bytes;
                                self->parse();
                            });
}

void Link::parse() {
    while (owner_ != nullptr) {
        if (!have_head_) {
            if (end_ - begin_ < sizeof(SealedHead)) break;
            if (!accept_head()) return;
        }
        size_t have = end_ - begin_;
        size_t need = head_.bytes == 0 ? 0 : head_.bytes + sizeof(Code);
        if (have < need) {
            if (need > in_.size()) return read_large(have);
            break;
        }
        if (need != 0) {
            std::memcpy(payload_.data(), in_.data() + begin_, head_.bytes);
            std::memcpy(tail_.data(), in_.data() + begin_ + head_.bytes, tail_.size());
            begin_ += need;
        }
        if (!deliver(tail_)) return;
    }
    if (owner_ != nullptr) read();
}

// A payload beyond the buffer is read straight to its place.
void Link::read_large(size_t have) {
    size_t of_payload = std::min<size_t>(have, head_.bytes);
    size_t of_tail = have - of_payload;
    std::memcpy(payload_.data(), in_.data() + begin_, of_payload);
    std::memcpy(tail_.data(), in_.data() + begin_ + of_payload, of_tail);
    begin_ = end_ = 0;
    std::array<asio::mutable_buffer, 2> rest = {asio::buffer(payload_.data() + of_payload, head_.bytes - of_payload),
                                                asio::buffer(tail_.data() + of_tail, tail_.size() - of_tail)};
    asio::async_read(socket_, rest, [self = shared_from_this()](const asio::error_code &error, size_t) {
        if (self->owner_ == nullptr) return;
        if (error) return self->lost(error);
        if (self->deliver(self->tail_)) self->parse();
    });
}

bool Link::accept_head() {
    SealedHead sealed;
    std::memcpy(&sealed, in_.data() + begin_, sizeof sealed);
    begin_ += sizeof sealed;
    if (!in_key_.next_is(&sealed.head, sizeof sealed.head, sealed.code)) {
        lost(MOELINK_ERR_PROTOCOL, "a frame's head was not authentic");
        return false;
    }
    head_ = sealed.head;
    try {
        if (head_.bytes > in_.size()) payload_ = owner_->spare();
        payload_.resize(head_.bytes);
    } catch (const std::exception &) {
        lost(MOELINK_ERR_OUT_OF_MEMORY, fmt::format("no memory for a frame of {} bytes", head_.bytes));
        return false;
    }
    have_head_ = true;
    return true;
}

bool Link::deliver(const Code &code) {
    if (head_.bytes != 0 && !in_key_.next_is(payload_.data(), payload_.size(), code)) {
        lost(MOELINK_ERR_PROTOCOL, "a frame was not authentic");
        return false;
    }
    have_head_ = false;
    try {
        owner_->on_frame(*this, head_.type, std::exchange(payload_, {}));
    } catch (const std::exception &error) {
        lost(MOELINK_ERR_OUT_OF_MEMORY, fmt::format("a frame of {} bytes could not be handled: {}", head_.bytes, error.what()));
    }
    return owner_ != nullptr;
}

void Link::lost(const asio::error_code &error) {
    if (error == asio::error::eof || error == asio::error::connection_reset || error == asio::error::broken_pipe) {
        lost(MOELINK_ERR_PEER_EXITED, "the connection was closed by the other end");
    } else {
        lost(MOELINK_ERR_PEER_UNREACHABLE, fmt::format("the connection broke: {}", error.message()));
    }
}

void Link::lost(moelink_status status, const std::string &text) {
    Owner *owner = std::exchange(owner_, nullptr);
    auto self = shared_from_this();
    close();
    if (owner != nullptr) owner->on_lost(*this, status, text);
}

}  // namespace moelink
