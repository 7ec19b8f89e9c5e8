// What the rest of the library knows of a group.
#pragma once

#include "base/deadline.hpp"
#include "base/error.hpp"
#include "base/ref.hpp"
#include "group/message.hpp"

#include <moelink/group.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace moelink {

// Control-plane connections of one rank: authenticated sockets, or the shared board of a group of threads. All collectives
// are called by every rank in the same order; each ends by its deadline and throws Error (TIMEOUT naming the missing ranks,
// PEER_EXITED naming the dead one, ABORTED, MISMATCH for different sizes).
class Transport {
public:
    virtual ~Transport() = default;
    // The attendant (may be NULL) is served while this rank waits for the others.
    virtual void allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant) = 0;
    virtual void broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline) = 0;
    virtual void finalize(const Deadline &deadline) = 0;
    // Queues a message and returns; connects on first use, by the deadline. Messages from one rank to another keep their order.
    // What does not arrive ends the group.
    virtual void send(int to, Payload payload, const Deadline &deadline) = 0;
    // Serves the attendant until it says that it is done; false when the deadline passes first. Throws the group's fault.
    virtual bool attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline) = 0;
    virtual void abort() noexcept = 0;
    // The first error that ended the group (OK while it is well); never blocks, any thread.
    virtual moelink_status fault(std::string *text) const noexcept = 0;
    virtual uint64_t strangers() const noexcept = 0;
    // A transport for the ranks `members` (numbers in this group, in the order of the new group); this rank is one of them.
    //
    // `number` tells this split from the group's others; all ranks count alike.
    virtual std::unique_ptr<Transport> split(const std::vector<int> &members, uint64_t number, const Deadline &deadline) = 0;
};

class Group : public Referenced {
public:
    struct Place {
        int rank = 0;
        int size = 1;
        int32_t device = MOELINK_DEVICE_HOST;  // never AUTO
        int ordinal = -1;
        uint64_t timeout_ns = 0;               // never 0
        std::string socket_dir;                // "" = abstract sockets
    };

    Group(Place place, std::unique_ptr<Transport> transport);

    int rank() const { return place_.rank; }
    int size() const { return place_.size; }
    int32_t device() const { return place_.device; }
    bool on_cuda() const { return place_.device == MOELINK_DEVICE_CUDA; }
    int ordinal() const { return place_.ordinal; }
    uint64_t timeout_ns() const { return place_.timeout_ns; }
    const std::string &socket_dir() const { return place_.socket_dir; }
    Deadline deadline() const { return Deadline::after_ns(place_.timeout_ns); }

    void allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant = nullptr);
    void broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline);
    void barrier(const Deadline &deadline);
    // As in Transport.
    void send(int to, Payload payload, const Deadline &deadline);
    bool attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline);

    template <class T>
    std::vector<T> allgather(const T &mine, const Deadline &deadline, Attendant *attendant = nullptr) {
        static_assert(std::is_trivially_copyable_v<T>);
        std::vector<T> all(static_cast<size_t>(size()));
        allgather(&mine, all.data(), sizeof(T), deadline, attendant);
        return all;
    }

    // Gathers texts of different lengths (each cut to 1 KiB).
    std::vector<std::string> allgather_text(const std::string &mine, const Deadline &deadline);

    Ref<Group> split(int32_t color, int32_t key);
    void finalize();
    void abort() noexcept;
    moelink_status fault(std::string *text = nullptr) const noexcept;
    uint64_t strangers() const noexcept;

    // Remembers the text for moelink_group_error.
    void note_error(const std::string &text) const noexcept;
    std::string error() const;

protected:
    ~Group() override;

private:
    struct State;
    void check_open() const;  // throws INVALID_STATE after finalize
    Place place_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<State> state_;
};

}  // namespace moelink

struct moelink_group {
    moelink::Ref<moelink::Group> object;
};
