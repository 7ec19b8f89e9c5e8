// One authenticated connection between two ranks, or a rank and the rendezvous: whole frames in, whole frames out.
// Everything here runs on the I/O thread of the hub that the socket belongs to.
#pragma once

#include "group/auth.hpp"
#include "group/message.hpp"

#include <moelink/base.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <asio/ip/tcp.hpp>

namespace moelink {

class Link : public std::enable_shared_from_this<Link> {
public:
    class Owner {
    public:
        virtual void on_frame(Link &link, uint32_t type, Bytes payload) = 0;
        // The connection is gone: PEER_EXITED (closed by the other end), PEER_UNREACHABLE, PROTOCOL or OUT_OF_MEMORY.
        virtual void on_lost(Link &link, moelink_status status, const std::string &text) = 0;
        // A buffer, of any size, for the payload of a large frame.
        virtual Bytes spare() { return {}; }

    protected:
        ~Owner() = default;
    };

    Link(asio::ip::tcp::socket socket, const FrameKey &in, const FrameKey &out, int peer);

    int peer() const { return peer_; }
    const asio::ip::tcp::socket &socket() const { return socket_; }

    // Frames are read from here on.
    void start(Owner *owner);
    void send(uint32_t type, Payload payload);
    // Drops the owner, sends what is queued, closes, then calls closed (once).
    void finish(std::function<void()> closed = {});
    // Closes at once; calls nobody but the closed function of finish.
    void close();

private:
    struct Head {
        uint32_t type;
        uint32_t reserved;
        uint64_t bytes;
    };
    struct SealedHead {
        Head head;
        Code code;
    };
    static_assert(sizeof(SealedHead) == 32);
    struct Outgoing {
        SealedHead head;
        Payload payload;
        Code code;
    };

    void read();
    void parse();
    void read_large(size_t have);
    bool accept_head();
    bool deliver(const Code &code);
    void write();
    void lost(moelink_status status, const std::string &text);
    void lost(const asio::error_code &error);

    asio::ip::tcp::socket socket_;
    FrameKey in_key_;
    FrameKey out_key_;
    int peer_;
    Owner *owner_ = nullptr;
    std::function<void()> closed_;
    bool finishing_ = false;

    Bytes in_;
    size_t begin_ = 0;
    size_t end_ = 0;
    bool have_head_ = false;
    Head head_{};
    Bytes payload_;
    Code tail_{};

    std::deque<Outgoing> queue_;
    size_t writing_ = 0;
};

// TCP without delays, keep-alive so that a vanished host is noticed, closed on exec.
void prepare_socket(asio::ip::tcp::socket &socket);
void close_on_exec(int descriptor);

}  // namespace moelink
