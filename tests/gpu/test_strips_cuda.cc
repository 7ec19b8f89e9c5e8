/* The kernel that copies strips, against copies made on the host: odd rows, strides and places, from the rank's own memory and from a
 * peer's, by few and by many multiprocessors. */
#include "device.h"
#include "strip_case.hpp"

#include <csetjmp>
#include <cstdarg>
#include <cstddef>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

constexpr uint64_t most_bytes = 96 << 20;  // of a case's source

struct Memories {
    rank_context *ctx;
    moelink_memory *symmetric = nullptr;
    unsigned char *mine = nullptr;
    const unsigned char *peers = nullptr;

    explicit Memories(rank_context *context) : ctx(context) {
        moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
        params.bytes = most_bytes;
        RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &symmetric));
        void *address = nullptr;
        RANK_OK(ctx, moelink_memory_peer(symmetric, ctx->rank, &address));
        mine = static_cast<unsigned char *>(address);
        RANK_OK(ctx, moelink_memory_peer(symmetric, (ctx->rank + 1) % ctx->size, &address));
        peers = static_cast<const unsigned char *>(address);
    }
    ~Memories() { moelink_memory_destroy(symmetric); }
};

// Every rank has the case's source; each copies the next one's.
void copy_case(Memories &memories, const StripCase &one, int multiprocessors) {
    rank_context *ctx = memories.ctx;
    RANK_CHECK(ctx, one.source.size() <= most_bytes);
    device_copy(ctx, memories.mine, one.source.data(), one.source.size());
    auto *target = static_cast<unsigned char *>(device_alloc(ctx, one.target.size()));
    device_copy(ctx, target, one.target.data(), one.target.size());
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_stream stream = device_stream_create(ctx);
    const auto copies = one.copies(target, memories.peers);
    RANK_EQUAL(ctx, kernels::cuda::copy_strips(copies.data(), copies.size(), multiprocessors, stream), 0);
    device_sync(ctx, stream);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));  // nobody reads the sources any more
    std::vector<unsigned char> got(one.target.size());
    device_copy(ctx, got.data(), target, got.size());
    for (size_t at = 0; at < got.size(); ++at) {
        if (got[at] == one.wanted[at]) continue;
        RANK_FAIL(ctx, "byte %llu of the target is %#x, must be %#x and was %#x", static_cast<unsigned long long>(at), got[at],
                  one.wanted[at], one.target[at]);
    }
    device_stream_destroy(ctx, stream);
    device_free(ctx, target);
}

void random_strips(rank_context *ctx) {
    Memories memories(ctx);
    static constexpr int budgets[] = {1, 2, 8, 132};
    for (uint64_t seed = 1; seed <= 120; ++seed) {
        rank_scene(ctx, "seed %d", static_cast<int>(seed));
        copy_case(memories, StripCase(seed, static_cast<int>(seed * 7 % 65), 0), budgets[seed % 4]);
    }
    for (int strips : {72, 150, 400}) {
        rank_scene(ctx, "%d strips", strips);
        copy_case(memories, StripCase(static_cast<uint64_t>(strips), strips, 0), 8);
    }
}

// One strip that is far larger than all others together, and is not whole vectors.
void large_strip(rank_context *ctx) {
    Memories memories(ctx);
    for (int multiprocessors : {1, 8, 64}) {
        rank_scene(ctx, "%d multiprocessors", multiprocessors);
        copy_case(memories, StripCase(5, 20, (64 << 20) + 13), multiprocessors);
    }
}

void run(int ranks, rank_function function, const char *name) {
    rank_options options{};
    options.size = ranks;
    options.device = MOELINK_DEVICE_CUDA;
    options.name = name;
    options.deadline_ms = 240 * 1000;
    assert_int_equal(ranks_run(&options, function), 0);
}

void test_random_strips(void **) {
    run(1, &random_strips, "own memory");
    run(2, &random_strips, "a peer's memory");
}

void test_large_strip(void **) {
    run(1, &large_strip, "own memory");
    run(2, &large_strip, "a peer's memory");
}

}  // namespace

int main() {
    int skipped = device_skip_main(MOELINK_DEVICE_CUDA, 1);
    if (skipped != 0) return skipped;
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_random_strips),
        cmocka_unit_test(test_large_strip),
    };
    return cmocka_run_group_tests_name("strip copies", tests, nullptr, nullptr);
}
