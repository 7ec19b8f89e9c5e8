#include "base/guard.hpp"
#include "base/params.hpp"

#include <moelink/group.h>

namespace {

using moelink::fail;

moelink_mapping_info describe(const moelink_mapping &mapping, int32_t ep_size) {
    if (mapping.dp < 1 || mapping.pcp < 1 || mapping.tp < 1) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "mapping has dp {}, pcp {}, tp {}; each must be 1 or more", mapping.dp, mapping.pcp,
             mapping.tp);
    }
    if (ep_size < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "ep_size is {}; pass the size of the group, or 0 not to check", ep_size);
    // Each step is checked, so that the product cannot overflow.
    int64_t product = int64_t{mapping.dp} * mapping.pcp;
    if (product <= INT32_MAX) product *= mapping.tp;
    if (product > INT32_MAX) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "dp {} * pcp {} * tp {} is more than any group can have (ep_size {})", mapping.dp,
             mapping.pcp, mapping.tp,
             ep_size);
    }
    if (ep_size != 0 && product != ep_size) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "dp {} * pcp {} * tp {} is {}, but the expert-parallel group has {} ranks; pass the "
                                           "group that spans all of them",
             mapping.dp, mapping.pcp, mapping.tp, product, ep_size);
    }
    if (mapping.rank < 0 || mapping.rank >= product) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "mapping.rank {} is not in 0 .. {}", mapping.rank, product - 1);
    }
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    info.ep_size = static_cast<int32_t>(product);
    info.tp_rank = mapping.rank % mapping.tp;
    info.pcp_rank = mapping.rank / mapping.tp % mapping.pcp;
    info.dp_rank = mapping.rank / mapping.tp / mapping.pcp;
    // A color is what the ranks of one group have in common: the other two coordinates, as one number.
    info.dp_color = info.pcp_rank * mapping.tp + info.tp_rank;
    info.pcp_color = info.dp_rank * mapping.tp + info.tp_rank;
    info.tp_color = info.dp_rank * mapping.pcp + info.pcp_rank;
    return info;
}

}  // namespace

void moelink_mapping_init(moelink_mapping *mapping) {
    const moelink_mapping defaults = MOELINK_MAPPING_INIT;
    if (mapping != nullptr) *mapping = defaults;
}

void moelink_mapping_info_init(moelink_mapping_info *info) {
    const moelink_mapping_info defaults = MOELINK_MAPPING_INFO_INIT;
    if (info != nullptr) *info = defaults;
}

moelink_status moelink_mapping_describe(const moelink_mapping *mapping, int32_t ep_size, moelink_mapping_info *out) {
    return moelink::guard("moelink_mapping_describe", [&] {
        const moelink_mapping defaults = MOELINK_MAPPING_INIT;
        moelink_mapping read = moelink::read_params(mapping, defaults, "mapping");
        moelink::check_output(out, "out");
        moelink::write_output(out, describe(read, ep_size), "out");
    });
}
