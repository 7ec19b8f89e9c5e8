#include "eplb/plan_file.hpp"

#include "eplb/text.hpp"

#include <iterator>

namespace moelink::eplb {

namespace {

constexpr const char *kind = "moelink-eplb-plan";
constexpr int64_t version = 1;

}  // namespace

void save_plan(const char *path, const Shape &shape, const int32_t *phy2log) {
    check_map(shape, phy2log, "phy2log");
    std::string text = fmt::format("{} {}\nlayers {}\nexperts {}\nslots {}\nranks {}\nnodes {}\ngroups {}\n", kind, version, shape.layers,
                                   shape.experts, shape.slots, shape.ranks, shape.nodes, shape.groups);
    for (int layer = 0; layer < shape.layers; ++layer) {
        text += "map";
        for (int slot = 0; slot < shape.slots; ++slot) {
            fmt::format_to(std::back_inserter(text), " {}", phy2log[size_t(layer) * size_t(shape.slots) + size_t(slot)]);
        }
        text += '\n';
    }
    write_checked(path, std::move(text));
}

PlanFile load_plan(const char *path) {
    TextReader reader(path);
    reader.need_kind(kind, version);
    PlanFile plan;
    Shape &shape = plan.shape;
    // The larger size first, so that each line can be judged alone.
    shape.layers = reader.need_size("layers", MOELINK_EPLB_MAX_LAYERS);
    shape.experts = reader.need_size("experts", MOELINK_EPLB_MAX_EXPERTS);
    shape.slots = reader.need_size("slots", MOELINK_EPLB_MAX_SLOTS);
    shape.ranks = reader.need_size("ranks", MOELINK_EPLB_MAX_RANKS, shape.slots);
    shape.nodes = reader.need_size("nodes", shape.ranks, shape.ranks);
    shape.groups = reader.need_size("groups", shape.experts, shape.experts);
    for (int layer = 0; layer < shape.layers; ++layer) {
        reader.need_line("a map");
        reader.need_word("map");
        for (int slot = 0; slot < shape.slots; ++slot) {
            plan.phy2log.push_back(static_cast<int32_t>(reader.need_integer("expert", -1, shape.experts - 1)));
        }
        reader.need_end();
    }
    reader.need_line("the checksum");
    reader.need_checksum();
    return plan;
}

}  // namespace moelink::eplb
