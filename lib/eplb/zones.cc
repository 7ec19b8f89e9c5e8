#include "eplb/zones.hpp"

#include "eplb/match.hpp"
#include "eplb/packing.hpp"

namespace moelink::eplb {

namespace {

std::vector<int> spread_to_experts(const std::vector<int> &zone_of_group, int experts) {
    std::vector<int> zones;
    size_t size = size_t(experts) / zone_of_group.size();
    for (int zone : zone_of_group) zones.insert(zones.end(), size, zone);
    return zones;
}

}  // namespace

std::vector<int> zones_of(const Layout &layout) {
    const Cluster &cluster = layout.cluster();
    std::vector<int> zone_of_group(size_t(cluster.groups), -1);
    int size = cluster.experts / cluster.groups;
    for (int expert = 0; expert < cluster.experts; ++expert) {
        int &zone = zone_of_group[size_t(expert / size)];
        for (int slot = layout.first(expert); slot >= 0; slot = layout.next(slot)) {
            int here = cluster.zone[size_t(cluster.rank_of(slot))];
            if (zone >= 0 && zone != here) return {};
            zone = here;
        }
    }
    std::vector<int> groups_in(size_t(cluster.zones), 0);
    for (int zone : zone_of_group) {
        if (zone < 0 || ++groups_in[size_t(zone)] > cluster.groups / cluster.zones) return {};
    }
    return spread_to_experts(zone_of_group, cluster.experts);
}

std::vector<int> pack_zones(const Layout &layout, const std::vector<int> &before) {
    const Cluster &cluster = layout.cluster();
    size_t size = size_t(cluster.experts / cluster.groups);
    std::vector<float> load(size_t(cluster.groups), 0.0f);
    for (int expert = 0; expert < cluster.experts; ++expert) {
        for (double step_load : layout.load(expert)) load[size_t(expert) / size] += float(step_load);
    }
    std::vector<int32_t> pack(load.size()), place(load.size());
    pack_items(load, cluster.zones, pack, place);

    std::vector<Overlap> overlaps;
    if (!before.empty()) {
        for (size_t group = 0; group < load.size(); ++group) overlaps.push_back({pack[group], before[group * size]});
    }
    std::vector<int> name = match(overlaps, std::vector<int>(size_t(cluster.zones), 0));
    std::vector<int> zone_of_group;
    for (int32_t one : pack) zone_of_group.push_back(name[size_t(one)]);
    return spread_to_experts(zone_of_group, cluster.experts);
}

}  // namespace moelink::eplb
