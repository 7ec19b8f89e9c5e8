// Reader for the .npy files that hold exact routing: int16 or int32, C order, two dimensions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace perf {

struct NpyTable {
    int64_t rows = 0;
    int64_t columns = 0;
    std::vector<int32_t> values;  // [rows, columns]
};

// Throws std::runtime_error with the file's name and what is wrong with it.
NpyTable read_npy(const std::string &path);

}  // namespace perf
