#include "group/group.hpp"

#include "base/log.hpp"

#include <algorithm>
#include <limits>
#include <mutex>

#include <unistd.h>

namespace moelink {

namespace {

constexpr size_t most_text = 1024;

// What one rank gives to allgather_text.
struct Note {
    uint32_t length;
    char text[most_text];
};

Note make_note(const std::string &text) {
    Note note{};
    note.length = static_cast<uint32_t>(std::min(text.size(), most_text));
    std::memcpy(note.text, text.data(), note.length);
    return note;
}

std::string text_of(const Note &note) { return std::string(note.text, std::min<size_t>(note.length, most_text)); }

}  // namespace

struct Group::State {
    mutable std::mutex mutex;
    std::string error;
    bool finalized = false;
    uint64_t splits = 0;
    pid_t process = getpid();
};

Group::Group(Place place, std::unique_ptr<Transport> transport)
    : place_(std::move(place)), transport_(std::move(transport)), state_(std::make_unique<State>()) {}

Group::~Group() {
    // In a forked child the connections and their thread are the parent's; to close them would disturb it, or wait for ever.
    if (getpid() != state_->process) (void)transport_.release();
}

void Group::check_open() const {
    if (state_->finalized) fail(MOELINK_ERR_INVALID_STATE, "rank {}: the group was finalized; it can only be destroyed", rank());
}

void Group::allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant) {
    check_open();
    if (bytes > std::numeric_limits<uint64_t>::max() / 2 / static_cast<uint64_t>(size())) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "allgather of {} bytes from each of {} ranks is more than there can be", bytes,
             size());
    }
    transport_->allgather(mine, all, bytes, deadline, attendant);
}

void Group::broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline) {
    check_open();
    if (root < 0 || root >= size()) fail(MOELINK_ERR_INVALID_ARGUMENT, "root {} is not in 0 .. {}", root, size() - 1);
    if (bytes > std::numeric_limits<uint64_t>::max() / 2) fail(MOELINK_ERR_INVALID_ARGUMENT, "broadcast of {} bytes is more than "
                                                               "there can be", bytes);
    transport_->broadcast(data, bytes, root, deadline);
}

void Group::barrier(const Deadline &deadline) { allgather(nullptr, nullptr, 0, deadline); }

void Group::send(int to, Payload payload, const Deadline &deadline) {
    check_open();
    transport_->send(to, std::move(payload), deadline);
}

bool Group::attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline) {
    check_open();
    return transport_->attend(attendant, done, deadline);
}

std::vector<std::string> Group::allgather_text(const std::string &mine, const Deadline &deadline) {
    std::vector<std::string> texts;
    for (const Note &note : allgather(make_note(mine), deadline)) texts.push_back(text_of(note));
    return texts;
}

Ref<Group> Group::split(int32_t color, int32_t key) {
    struct Wish {
        int32_t color;
        int32_t key;
    };
    auto until = deadline();
    std::vector<Wish> wishes = allgather(Wish{color, key}, until);
    const uint64_t number = state_->splits++;  // also for a rank that joins none: the others count on
    if (color < 0) return {};
    std::vector<int> members;
    for (int i = 0; i < size(); ++i) {
        if (wishes[static_cast<size_t>(i)].color == color) members.push_back(i);
    }
    std::stable_sort(members.begin(), members.end(),
                     [&](int a, int b) { return wishes[static_cast<size_t>(a)].key < wishes[static_cast<size_t>(b)].key; });
    Place place = place_;
    place.size = static_cast<int>(members.size());
    place.rank = static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
    std::unique_ptr<Transport> transport;
    try {
        transport = transport_->split(members, number, until);
    } catch (const Error &error) {
        std::string text;
        if (const moelink_status over = fault(&text); over != MOELINK_OK) throw Error(over, text);
        throw Error(error.status(), fmt::format("in the new group of color {}, with its own rank numbers: {}", color,
                                                error.text()));
    }
    return Ref<Group>::adopt(new Group(std::move(place), std::move(transport)));
}

void Group::finalize() {
    check_open();
    transport_->finalize(deadline());
    state_->finalized = true;
}

void Group::abort() noexcept { transport_->abort(); }

moelink_status Group::fault(std::string *text) const noexcept { return transport_->fault(text); }

uint64_t Group::strangers() const noexcept { return transport_->strangers(); }

void Group::note_error(const std::string &text) const noexcept {
    try {
        std::lock_guard lock(state_->mutex);
        state_->error = text;
    } catch (const std::exception &error) {
        log(MOELINK_LOG_ERROR, "an error text was lost: {}", error.what());
    }
}

std::string Group::error() const {
    std::string text;
    {
        std::lock_guard lock(state_->mutex);
        text = state_->error;
    }
    if (text.empty()) fault(&text);
    return text;
}

}  // namespace moelink
