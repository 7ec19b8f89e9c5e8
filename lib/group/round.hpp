// One collective as the rank that decides sees it: who has come with what, and the one outcome for all.
#pragma once

#include "group/link.hpp"

#include <moelink/base.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace moelink {

enum Op : uint32_t {
    op_open = 1,  // the last step of making a group
    op_allgather = 2,
    op_broadcast = 3,
    op_finalize = 4,
};

// What a rank says when it comes to a collective; its bytes follow. Travels as it is.
struct Call {
    uint64_t seq;    // number of the collective in this group
    uint64_t bytes;  // as the caller gave them, on every rank
    uint32_t op;
    int32_t rank;
    int32_t root;
    uint32_t reserved;
};
static_assert(sizeof(Call) == 32);

std::string call_text(const Call &call);
// "3", "0, 2, 5-7"
std::string ranks_text(const std::vector<int> &ranks);

// The outcome, in the form in which it travels: a head, then the result or the text of the failure.
class Decision {
public:
    struct Head {
        uint64_t seq;
        uint32_t op;
        int32_t status;
    };
    static_assert(sizeof(Head) == 16);

    explicit Decision(SharedBytes frame) : frame_(std::move(frame)) {}
    static Decision failure(uint64_t seq, uint32_t op, moelink_status status, const std::string &text);

    Head head() const {
        Head head;
        std::memcpy(&head, frame_->data(), sizeof head);
        return head;
    }
    const uint8_t *data() const { return frame_->data() + sizeof(Head); }
    uint64_t bytes() const { return frame_->size() - sizeof(Head); }
    std::string text() const { return std::string(reinterpret_cast<const char *>(data()), bytes()); }
    const SharedBytes &frame() const { return frame_; }

private:
    SharedBytes frame_;
};

class Round {
public:
    explicit Round(int size);

    // Whether a call's data has the length that it announces.
    static bool well_formed(const Call &call, uint64_t data_bytes, int size);

    // Takes a call in. NULL until the last rank has come. A call of another round is dropped: that one was decided before.
    std::unique_ptr<Decision> add(const Call &call, const uint8_t *data);

    // Ends round `seq` for all because `rank` cannot wait any longer; NULL when it has been decided already.
    std::unique_ptr<Decision> give_up(uint64_t seq, int rank, uint64_t waited_ns);

private:
    Decision decide();
    void next();

    int size_;
    uint64_t seq_ = 0;
    int arrived_ = 0;
    std::vector<bool> here_;
    Call first_{};
    bool contradiction_ = false;
    Call other_{};
    bool no_memory_ = false;
    Bytes frame_;
};

}  // namespace moelink
