#include "eplb/reach.hpp"

#include "base/log.hpp"
#include "base/params.hpp"
#include "driver/cuda.hpp"
#include "group/agreement.hpp"
#if MOELINK_CUDA
#include "memory/device_copies.hpp"
#endif

#include <cstring>

namespace moelink::eplb {

// What a rank tells of one tensor.
struct Reach::Card {
    std::array<uint8_t, 16> memory;  // the moelink_memory that it lies in
    int32_t memory_rank;             // the owner's rank there; -1: in none
    int32_t ordinal;
    int32_t has_ipc;
    int32_t reserved;
    uint64_t memory_offset;
    uint64_t address;  // in its own process
    uint64_t slot_stride;
    uint64_t row_stride;
    std::array<unsigned char, 64> ipc;  // of the allocation that it lies in
    uint64_t ipc_offset;
    char why_not[160];  // neither in a moelink_memory nor exported
};

#if MOELINK_CUDA

// A peer's allocation, mapped here.
struct Reach::Opened {
    Opened(int ordinal, const std::array<unsigned char, 64> &name) : context(ordinal) {
        static_assert(sizeof(CUipcMemHandle) == 64);
        CUipcMemHandle handle;
        std::memcpy(&handle, name.data(), sizeof handle);
        ContextGuard guard(context);
        check(cuda().ipc_open(&at, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), "cuIpcOpenMemHandle");
    }
    ~Opened() {
        try {
            ContextGuard guard(context);
            check(cuda().ipc_close(at), "cuIpcCloseMemHandle");
        } catch (const Error &error) {
            log(MOELINK_LOG_WARN, "a peer's weights were not given up: {}", error.text());
        }
    }
    PrimaryContext context;
    CUdeviceptr at = 0;
};

namespace {

// Throws why the driver does not export the memory that a tensor lies in.
void export_ipc(int ordinal, const void *base, uint64_t bytes, std::array<unsigned char, 64> &name, uint64_t &offset) {
    ContextGuard guard(ordinal);
    CUdeviceptr start = 0;
    size_t size = 0;
    const auto at = reinterpret_cast<CUdeviceptr>(base);
    check(cuda().mem_address_range(&start, &size, at), "cuMemGetAddressRange");
    if (at - start > size || bytes > size - (at - start)) {
        fail(MOELINK_ERR_UNSUPPORTED, "the tensor goes beyond the allocation that it begins in");
    }
    CUipcMemHandle handle;
    check(cuda().ipc_handle(&handle, start), "cuIpcGetMemHandle");
    std::memcpy(name.data(), &handle, sizeof handle);
    offset = at - start;
}

}  // namespace

#else

struct Reach::Opened {};

#endif

Strips Reached::rows(int32_t slot) const {
    Strips rows = slot0;
    for (size_t i = 0; i < rows.size(); ++i) rows[i].data += static_cast<uint64_t>(slot) * slot_stride[i];
    return rows;
}

Reach::Reach(const CommBackendParams &params)
    : group_(params.group), device_(params.device), places_(params.places),
      maps_((params.params.flags & MOELINK_EPLB_COMM_F_NO_MAP) == 0) {}

Reach::~Reach() = default;

Reach::Card Reach::card_of(const moelink_eplb_tensor &tensor, int32_t local_slots) const {
    Card card{};
    card.memory_rank = -1;
    card.ordinal = group_.ordinal();
    card.address = reinterpret_cast<uintptr_t>(tensor.base);
    card.slot_stride = tensor.slot_stride;
    card.row_stride = tensor.row_stride;
    if (local_slots == 0) return card;
    const uint64_t slot_bytes = (tensor.rows - 1) * tensor.row_stride + tensor.row_bytes;
    const uint64_t bytes = static_cast<uint64_t>(local_slots - 1) * tensor.slot_stride + slot_bytes;
    if (Ref<Memory> memory = Memory::holding(tensor.base, bytes)) {
        card.memory = memory->name();
        card.memory_rank = memory->group().rank();
        card.memory_offset = static_cast<uint64_t>(static_cast<const char *>(tensor.base) - static_cast<const char *>(memory->mine()));
        return card;
    }
    std::string why = "it lies in no moelink_memory";
#if MOELINK_CUDA
    if (device_.on_cuda()) {
        try {
            export_ipc(group_.ordinal(), tensor.base, bytes, card.ipc, card.ipc_offset);
            card.has_ipc = 1;
        } catch (const Error &error) {
            why += ", and CUDA IPC does not export it: " + error.text();
        }
    }
#endif
    write_text(why, card.why_not, sizeof card.why_not);
    return card;
}

const unsigned char *Reach::in_process(const Card &card, Reached &reached) const {
#if MOELINK_CUDA
    if (device_.on_cuda() && card.ordinal != group_.ordinal()) {
        try {
            ContextGuard guard(group_.ordinal());
            reach_device(group_.ordinal(), card.ordinal);
            reached.by_kernels = reached.by_kernels && card.has_ipc != 0;  // only memory of cudaMalloc opens with its device
        } catch (const Error &error) {
            reached.why = error.text();
            return nullptr;
        }
    }
#endif
    (void)reached;
    return reinterpret_cast<const unsigned char *>(static_cast<uintptr_t>(card.address));
}

// NULL, with the reason in reached.why, when the tensor cannot be read.
const unsigned char *Reach::find(int rank, const Card &card, Reached &reached) {
    const ProcessPlace &here = places_[static_cast<size_t>(group_.rank())];
    const ProcessPlace &there = places_[static_cast<size_t>(rank)];
    if (!maps_ && !same_process(here, there)) {
        reached.why = "params.flags has NO_MAP";
        return nullptr;
    }
    if (card.memory_rank >= 0) {
        Ref<Memory> memory = Memory::named(card.memory, group_.ordinal());
        if (!memory || card.memory_rank >= memory->info().ranks) {
            reached.why = "the moelink_memory that it lies in is not this rank's too";
            return nullptr;
        }
        const auto *base = static_cast<const unsigned char *>(memory->peer(card.memory_rank));
        reached.kept.push_back(std::move(memory));
        return base + card.memory_offset;
    }
    if (same_process(here, there)) return in_process(card, reached);
    if (card.has_ipc == 0) {
        reached.why = std::string(card.why_not, strnlen(card.why_not, sizeof card.why_not));
        return nullptr;
    }
    if (!may_share_host(here, there)) {
        reached.why = "it lies in no moelink_memory, and CUDA IPC does not leave its host";
        return nullptr;
    }
#if MOELINK_CUDA
    try {
        std::unique_ptr<Opened> &opened = opened_[card.ipc];
        if (!opened) opened = std::make_unique<Opened>(group_.ordinal(), card.ipc);
        return reinterpret_cast<const unsigned char *>(opened->at) + card.ipc_offset;
    } catch (const Error &error) {
        opened_.erase(card.ipc);
        reached.why = error.text();
    }
#endif
    return nullptr;
}

std::vector<Reached> Reach::look(const Layer &layer, const Deadline &deadline) {
    const size_t count = layer.tensors.size();
    std::vector<Card> mine;
    step(group_, deadline, [&] {
        for (const moelink_eplb_tensor &tensor : layer.tensors) mine.push_back(card_of(tensor, layer.local_slots));
    });
    std::vector<Card> all(count * static_cast<size_t>(group_.size()));
    group_.allgather(mine.data(), all.data(), count * sizeof(Card), deadline);
    std::vector<Reached> result(static_cast<size_t>(group_.size()));
    step(group_, deadline, [&] {
        for (int rank = 0; rank < group_.size(); ++rank) {
            Reached &reached = result[static_cast<size_t>(rank)];
            if (rank == group_.rank() || layer.rank_slots[static_cast<size_t>(rank)] == 0) continue;
            for (size_t i = 0; i < count; ++i) {
                const Card &card = all[static_cast<size_t>(rank) * count + i];
                const unsigned char *at = find(rank, card, reached);
                if (at == nullptr) {
                    reached.why = fmt::format("tensor {} of layer {}: {}", i, layer.number, reached.why);
                    reached.slot0.clear();
                    break;
                }
                const moelink_eplb_tensor &tensor = layer.tensors[i];
                reached.slot0.push_back(Strip{const_cast<unsigned char *>(at), tensor.rows, tensor.row_bytes, card.row_stride});
                reached.slot_stride.push_back(card.slot_stride);
            }
        }
    });
    return result;
}

}  // namespace moelink::eplb
