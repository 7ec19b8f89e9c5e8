// Rows by bulk copies (TMA): a few threads have the copy unit read them into shared memory, and store them from there to every place
// that they go to. The load and store units are left to the block's other threads.
//
// Bulk copies belong to the async proxy. What generic accesses did before is ordered before them by the proxy fence in the ring's
// `open`; that they are done, before a fence and a flag, is what `written` waits for (docs/kernels.md).
#pragma once

#include "common/rows.cuh"
#include "common/signal.cuh"

#include <atomic>

namespace moelink::kernels::cuda {

inline constexpr int bulk_warps = 4;      // the last of a block, of which the first lanes copy: with one, 16 multiprocessors do not fill the link
inline constexpr int bulk_chunk = 14336;  // most bytes of a row that are copied at once: a chunk takes its thread 0.6 us, however small
inline constexpr int bulk_first_chunk = 3584;  // of dispatch's first rows
inline constexpr int bulk_stages = 3;
inline constexpr int bulk_ahead = 2;      // chunks that are read before they are stored

// Which of these warps this thread's is; negative: none.
__device__ __forceinline__ int bulk_warp() { return static_cast<int>(threadIdx.x / 32) - (block_warps - bulk_warps); }

struct BulkMemory {
    struct alignas(128) Warp {
        unsigned char stage[bulk_stages][bulk_chunk];
        uint64_t full[bulk_stages];
    };
    Warp warp[bulk_warps];
};

// Every device that kernels were loaded on has as much for a block.
inline std::atomic<bool> bulk_memory_allowed{true};

// Whether the kernel was launched with it.
__device__ __forceinline__ bool bulk_copies() {
    uint32_t bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes >= sizeof(BulkMemory);
}

__device__ __forceinline__ BulkMemory &bulk_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return *reinterpret_cast<BulkMemory *>(memory);
}

// Rows that bulk copies take: whole 16-byte vectors, long enough to be worth an instruction of one thread.
__device__ __forceinline__ bool goes_in_bulk(uint64_t row_bytes, int32_t width) { return width == 16 && row_bytes >= 1024; }

// Of one thread. Chunks are stored in the order in which they are read, each of them to any number of places:
//     read while there is room, then for each: await, store..., stored, and read while there is room
class Ring {
public:
    // After the kernel's entry: what was written or read before it, here or at a peer, comes before the copies.
    __device__ __forceinline__ void open() {
        memory_ = &bulk_memory().warp[bulk_warp()];
        for (int i = 0; i < bulk_stages; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&memory_->full[i])) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }

    // One chunk at first: all multiprocessors begin at once, and want their first ones soon.
    __device__ __forceinline__ bool has_room() const { return reads_ - stores_ < min(static_cast<uint32_t>(bulk_ahead), 1 + stores_); }

    __device__ __forceinline__ void read(const unsigned char *from, uint32_t bytes) {
        // What was in this stage bulk_stages reads ago has left it.
        asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(bulk_stages - bulk_ahead) : "memory");
        const uint32_t stage = reads_ % bulk_stages, full = shared_address(&memory_->full[stage]);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(memory_->stage[stage])),
                     "l"(from), "r"(bytes), "r"(full)
                     : "memory");
        ++reads_;
    }

    // The next chunk to be stored has been read.
    __device__ __forceinline__ void await() const {
        const uint32_t full = shared_address(&memory_->full[stores_ % bulk_stages]), parity = stores_ / bulk_stages % 2;
        uint32_t done = 0;
        while (done == 0) {
            asm volatile("{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
                         : "=r"(done)
                         : "r"(full), "r"(parity)
                         : "memory");
        }
    }

    __device__ __forceinline__ void store(unsigned char *to, uint32_t bytes) const {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(memory_->stage[stores_ % bulk_stages])), "r"(bytes)
                     : "memory");
    }

    __device__ __forceinline__ void stored() {
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        ++stores_;
    }

    // All but the last `behind` chunks are where they go to; this thread may tell others so.
    template <int behind>
    __device__ __forceinline__ void written() const {
        if constexpr (!left_out<Site::bulk_written>) asm volatile("cp.async.bulk.wait_group %0;" ::"n"(behind) : "memory");
    }

    // What was read is not wanted after all. A block must not end before its copies.
    __device__ __forceinline__ void drop() {
        for (; stores_ != reads_; ++stores_) await();
    }

    __device__ __forceinline__ uint32_t stores() const { return stores_; }

private:
    static __device__ __forceinline__ uint32_t shared_address(const void *at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

    BulkMemory::Warp *memory_;
    uint32_t reads_ = 0;
    uint32_t stores_ = 0;
};

}  // namespace moelink::kernels::cuda
