// A map and its shape in a file.
#pragma once

#include "eplb/shape.hpp"

#include <cstdint>
#include <vector>

namespace moelink::eplb {

struct PlanFile {
    Shape shape;
    std::vector<int32_t> phy2log;  // [layers, slots]
};

void save_plan(const char *path, const Shape &shape, const int32_t *phy2log);
PlanFile load_plan(const char *path);

}  // namespace moelink::eplb
