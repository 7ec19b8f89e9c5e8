// How this rank reads the live rows of others: which mappings of their memory it has or can make.
#pragma once

#include "eplb/comm_backend.hpp"
#include "memory/memory.hpp"

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moelink::eplb {

// Another rank's tensors of a layer as this rank sees them.
struct Reached {
    std::vector<Strip> slot0;           // rows of its slot 0; empty: they cannot be read, and why says so
    std::vector<uint64_t> slot_stride;  // [bytes]
    std::vector<Ref<Memory>> kept;      // whose mappings these are
    std::string why;
    bool by_kernels = true;             // not by copy engines alone
    Strips rows(int32_t slot) const;
};

class Reach {
public:
    explicit Reach(const CommBackendParams &params);
    ~Reach();
    Reach(const Reach &) = delete;
    Reach &operator=(const Reach &) = delete;

    // Collective. What each rank can be read of (this one: nothing, without a reason). Never fails because something cannot be read.
    std::vector<Reached> look(const Layer &layer, const Deadline &deadline);

private:
    struct Card;
    struct Opened;
    Card card_of(const moelink_eplb_tensor &tensor, int32_t local_slots) const;
    const unsigned char *in_process(const Card &card, Reached &reached) const;
    const unsigned char *find(int rank, const Card &card, Reached &reached);

    Group &group_;
    const Device &device_;
    const std::vector<ProcessPlace> places_;
    const bool maps_;  // memory of other processes
    std::map<std::array<unsigned char, 64>, std::unique_ptr<Opened>> opened_;  // by CUDA IPC handle
};

}  // namespace moelink::eplb
