#include "plan.h"

#include <string.h>

const int32_t plan_kinds[PLAN_KINDS] = {MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_TWO_SIDED, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER,
                                        MOELINK_MANAGER_REFERENCE};

int plan_has_ranks(int32_t device, int ranks) {
    if (device != MOELINK_DEVICE_CUDA) return 1;
    int gpus = device_gpu_count();
    return gpus > 0 && (ranks <= 4 || (gpus > 1 && ranks == 8));
}

int plan_has_kind(rank_context *ctx, int32_t kind) {
    if (ctx->device != MOELINK_DEVICE_CUDA || kind != MOELINK_MANAGER_ALLGATHER_REDUCESCATTER) return 1;
    if (ctx->size > device_gpu_count()) return 0;
    char text[512] = "";
    moelink_status status = moelink_manager_kind_describe(kind, ctx->device, text, sizeof(text));
    if (status != MOELINK_OK) rank_note(ctx, "left out: %s", text);
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
