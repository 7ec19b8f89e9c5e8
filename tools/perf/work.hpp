// What dispatch, combine and the pair of both move, and what meeting other ranks costs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "traffic.hpp"

namespace perf {

enum class Operation { dispatch, combine, pair };
inline constexpr std::array operations = {Operation::dispatch, Operation::combine, Operation::pair};
const char *name_of(Operation operation);

// What an operation moves on the rank that has most of it.
struct Work {
    int64_t tokens = 0;  // on each rank
    double crossed = 0;  // [bytes] over the link, the busier direction
    double local = 0;    // [bytes] read and written in the rank's own memory
    double sync_us = 0;  // t_sync
};

// t_sync(R): the time in which each rank's flags reach all others, as `moelink-perf link` measures it between two GPUs with as many
// flags as there are peers.
class Sync {
public:
    Sync() = default;
    // Throws std::invalid_argument when it is no such document or has no flags.
    explicit Sync(const std::string &link_file);
    bool known() const { return !figures_.empty(); }
    // [us]; 0 when nothing is known. Between measured numbers of flags by the line through them, beyond by the last such line.
    double us(int ranks) const;

private:
    std::vector<std::pair<int, double>> figures_;  // flags, us; rising
};

struct RowBytes {
    double dispatch = 0;
    double combine = 0;
};

// Dispatch reads each token's row and writes those that stay; combine reads the rows that it adds and writes each token's.
Work work_of(Operation operation, const Traffic &traffic, int64_t tokens, const RowBytes &row, double sync_us);

}  // namespace perf
