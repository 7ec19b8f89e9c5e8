// Models whose shapes a run can take.
#pragma once

#include <array>

namespace perf {

struct Shape {
    const char *name;
    int hidden;
    int topk;
    int experts;
};

inline constexpr std::array shapes = {
    Shape{"deepseek-v3", 7168, 8, 256},   Shape{"deepseek-v4-pro", 7168, 6, 384}, Shape{"kimi-k2", 7168, 8, 384},
    Shape{"qwen3-235b", 4096, 8, 128},    Shape{"qwen3.5-397b", 4096, 10, 512},   Shape{"gpt-oss-120b", 2880, 4, 128},
    Shape{"glm-4.6", 5120, 8, 160},       Shape{"nemotron-3", 1024, 22, 512},
};

// Batch sizes of a sweep: tokens on each rank.
inline constexpr std::array sweep_tokens = {1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096};

}  // namespace perf
