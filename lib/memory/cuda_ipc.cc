// Plain device memory and CUDA IPC handles. A process cannot open its own handles, so ranks of one process use the pointer.
#include "memory/choice.hpp"
#include "memory/device_copies.hpp"
#include "memory/place.hpp"

#include "base/log.hpp"

namespace moelink {

namespace {

// The driver hands out small allocations from pieces of this size and shares whole pieces.
constexpr uint64_t piece = uint64_t{2} << 20;

// What every rank tells the others.
struct Card {
    ProcessPlace place;
    uint64_t address;
    int32_t ordinal;
    uint32_t reserved;
    CUipcMemHandle handle;
};

class IpcCopies final : public DeviceCopies {
public:
    IpcCopies(const Group &group, uint64_t size) : DeviceCopies(group, size, piece), opened_(peers.size(), 0) {
        ContextGuard guard(context());
        CUdeviceptr own = 0;
        check(cuda().mem_alloc(&own, size), "cuMemAlloc");
        set_address(rank(), own);
    }
    ~IpcCopies() override {
        detach();
        release_own();
    }

    Card card() const {
        ContextGuard guard(context());
        Card card{};
        card.place = process_place();
        card.address = address(rank());
        card.ordinal = ordinal();
        check(cuda().ipc_handle(&card.handle, address(rank())), "cuIpcGetMemHandle");
        return card;
    }

    void open(size_t peer, const Card &mine, const Card &other) {
        ContextGuard guard(context());
        if (same_process(mine.place, other.place)) {
            if (other.ordinal != ordinal()) reach_device(ordinal(), other.ordinal);
            set_address(peer, other.address);
            return;
        }
        if (!may_share_host(mine.place, other.place)) {
            fail(MOELINK_ERR_UNSUPPORTED, "rank {} is on another host, and CUDA IPC does not leave its own", peer);
        }
        CUdeviceptr at = 0;
        check(cuda().ipc_open(&at, other.handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
              fmt::format("memory of rank {}: cuIpcOpenMemHandle", peer).c_str());
        opened_[peer] = 1;
        set_address(peer, at);
    }

    // The owner must not free while others have its memory open.
    void detach() noexcept override {
        try {
            ContextGuard guard(context());
            for (size_t peer = 0; peer < opened_.size(); ++peer) {
                if (opened_[peer] == 0) continue;
                warn_unless_done(cuda().ipc_close(address(peer)), "cuIpcCloseMemHandle");
                opened_[peer] = 0;
                peers[peer] = nullptr;
            }
        } catch (const Error &error) {
            log(MOELINK_LOG_WARN, "peers' device memory was not given up: {}", error.text());
        }
    }

private:
    void release_own() noexcept {
        try {
            ContextGuard guard(context());
            warn_unless_done(cuda().mem_free(address(rank())), "cuMemFree");
        } catch (const Error &error) {
            log(MOELINK_LOG_WARN, "device memory was not given back: {}", error.text());
        }
    }

    std::vector<char> opened_;
};

}  // namespace

uint64_t cuda_ipc_granularity(const Group &group) {
    if (device_attribute(group, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) == 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "the driver reports no unified addressing for device {}", group.ordinal());
    }
    return piece;
}

std::unique_ptr<Copies> map_cuda_ipc(Group &group, uint64_t bytes, const Deadline &deadline) {
    std::unique_ptr<IpcCopies> copies;
    Card mine{};
    step(group, deadline, [&] {
        copies = std::make_unique<IpcCopies>(group, bytes);
        mine = copies->card();
    });
    std::vector<Card> cards = group.allgather(mine, deadline);
    try {
        step(group, deadline, [&] {
            for (size_t peer = 0; peer < cards.size(); ++peer) {
                if (peer != static_cast<size_t>(group.rank())) copies->open(peer, mine, cards[peer]);
            }
        });
    } catch (const Refusal &) {
        retire(group, std::move(copies), deadline);
        throw;
    }
    return copies;
}

}  // namespace moelink
