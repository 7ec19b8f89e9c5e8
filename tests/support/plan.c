#include "plan.h"

#include <string.h>

const int32_t plan_kinds[PLAN_KINDS] = {MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_TWO_SIDED, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER,
                                        MOELINK_MANAGER_REFERENCE};

const plan_variant plan_variants[PLAN_VARIANTS] = {
    {MOELINK_MANAGER_ONE_SIDED, 0},
    {MOELINK_MANAGER_TWO_SIDED, 0},
    {MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, 0},
    {MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_F_NCCL},
    {MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_F_NCCL | MOELINK_MANAGER_F_DETERMINISTIC},
    {MOELINK_MANAGER_REFERENCE, 0},
};

int plan_has_ranks(int32_t device, int ranks) {
    if (device != MOELINK_DEVICE_CUDA) return 1;
    int gpus = device_gpu_count();
    return gpus > 0 && (ranks <= 4 || (gpus > 1 && ranks == 8));
}

int plan_has_variant(rank_context *ctx, plan_variant variant) {
    if ((variant.flags & MOELINK_MANAGER_F_NCCL) == 0) return 1;
    if (ctx->device != MOELINK_DEVICE_CUDA || ctx->size > device_gpu_count()) return 0;
    const uint64_t row_bytes = 16;
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = config.top_k = config.num_experts = config.payload_count = 1;
    config.payload_row_bytes = &row_bytes;
    config.flags = variant.flags;
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    moelink_status status = moelink_manager_query(ctx->group, variant.kind, &config, &sizes);
    if (status != MOELINK_OK) rank_note(ctx, "left out: %s", moelink_last_error());
    return status == MOELINK_OK;
}

rank_options plan_options(int32_t device, const char *name, int ranks, int threads) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.device = device;
    options.name = name;
    options.size = ranks;
    options.threads = threads && (device != MOELINK_DEVICE_CUDA || ranks <= device_gpu_count());
    options.deadline_ms = 120000;
    return options;
}
