// One kind of manager: a file that implements Backend and one row in the table of kinds.
#pragma once

#include "moe/config.hpp"
#include "moe/device_memory.hpp"

#include <moelink/alltoall.h>
#include <moelink/moe.h>

#include <array>
#include <memory>
#include <string>

namespace moelink {

// A dispatch after its checks. Payloads and outputs are normalised: strides set, row_bytes 0 when not sent. With `quantize` payloads
// are described as they travel, but for the data and stride of the first, which are those of its BF16 rows; the second has no data.
struct DispatchCall {
    moelink_dispatch_args args{};
    kernels::Halves halves = kernels::both_halves;
    bool routed = true;   // there are ids
    bool cached = false;  // ids and weights are those of the slot's last dispatch
    bool weights = false; // each token has weights, as far as this rank knows
    int32_t payload_count = 0;
    kernels::QuantizeForm quantize = kernels::quantize_none;
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> payloads{};
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> outputs{};  // data NULL: a view
};

struct CombineCall {
    int32_t slot = 0;
    kernels::Halves halves = kernels::both_halves;
    bool weighted = false;
    int32_t sm_budget = 0;
    int32_t num_tokens = 0;  // bound of the slot's last dispatch
    int64_t input_rows = 0;  // 0: the caller does not say
    bool ends = true;        // the round
    moelink_rows input{};
    moelink_rows output{};
};

// A prepare after its checks.
struct PrepareCall {
    int32_t slot = 0;
    int32_t num_tokens = 0;
    int32_t topk_ids_dtype = 0;
    const int32_t *num_tokens_device = nullptr;
    const void *topk_ids = nullptr;
    const float *topk_weights = nullptr;
    bool packed = false;
    int32_t invalid_id = 0;
    const int64_t *statistics = nullptr;
    int32_t num_statistics = 0;
    int32_t sm_budget = 0;
};

// Normalised as a DispatchCall's payloads and outputs.
struct AlltoallvCall {
    int32_t slot = 0;
    int32_t num_tokens = 0;  // bound of the slot's prepared routing
    int32_t count = 0;
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> tensors{};
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> outputs{};
};

// Where a dispatch of one slot puts what it receives.
struct Received {
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> payloads{};
    int32_t *topk_ids = nullptr;
    float *topk_weights = nullptr;
    const int32_t *recv_counts = nullptr;
    const int32_t *tokens = nullptr;  // token of each row, every tokens_stride-th word; nullptr: row i of a source is its token i
    int64_t tokens_stride = 1;
};

// A workspace and what runs over it. Made collectively; a constructor throws alike on all ranks. Calls throw Error: below
// -100 or DEVICE means that the round is lost and the manager faulted.
class Backend {
public:
    virtual ~Backend() = default;
    virtual moelink_manager_sizes sizes() const = 0;
    // Whether calls may be made in two halves.
    virtual bool halves() const { return false; }
    virtual Received dispatch(const DispatchCall &call, moelink_stream stream) = 0;
    virtual void combine(const CombineCall &call, moelink_stream stream) = 0;
    // Collective; the device is idle on every rank.
    virtual void abandon(int32_t slot, const Deadline &deadline) = 0;

    // Whether there are what follows, and combines that do not end their round.
    virtual bool has_fifos() const { return false; }
    virtual moelink_prepared prepare(const PrepareCall &, moelink_stream) { no_fifos(); }
    virtual void alltoallv(const AlltoallvCall &, moelink_stream) { no_fifos(); }
    // As abandon of all slots, also after a fault.
    virtual void reset_all(const Deadline &) { no_fifos(); }

private:
    [[noreturn]] static void no_fifos();
};

struct BackendParams {
    Ref<Group> group;
    Device device;
    Config config;
    kernels::ExpertRanks owners;  // its tables outlive the back end
    Faults &faults;
    uint64_t generation;
};

struct ManagerKind {
    int32_t kind;
    const char *name;
    const char *what;  // one line: what it is and needs
    // OK, or why not on this machine.
    moelink_status (*available)(int32_t device, std::string *why);
    // Throws what would keep a group from using the config.
    moelink_manager_sizes (*query)(const Group &group, const Config &config);
    std::unique_ptr<Backend> (*make)(const BackendParams &params);
};

// NULL when there is none.
const ManagerKind *find_kind(int32_t kind);

// The rows of the table.
extern const ManagerKind one_sided_kind;
extern const ManagerKind two_sided_kind;
extern const ManagerKind allgather_reducescatter_kind;
extern const ManagerKind reference_kind;

// Throws the status with the text of a CUDA launch that failed.
void check_launch(kernels::cuda::Result result, const char *what);

// How kernels name a dtype that combine takes.
kernels::ValueType value_type_of(int32_t dtype);

// [ranks * capacity] rows of the largest form of a payload.
inline moelink_rows dense_rows(void *data, const moelink_rows &like) {
    return moelink_rows{data, like.row_bytes, like.row_bytes, like.dtype, 0};
}

}  // namespace moelink
