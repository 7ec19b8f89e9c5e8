// vLLM's names of all-to-all back ends, as data.
#include "base/guard.hpp"
#include "base/params.hpp"

#include <moelink/moe.h>

#include <cstring>
#include <iterator>

namespace moelink {

namespace {

constexpr uint32_t row_size = sizeof(moelink_all2all_backend);

const moelink_all2all_backend backends[] = {
    {row_size, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_LAYOUT_PACKED, 1, "allgather_reducescatter", ""},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_RANK_MAJOR, 1, "flashinfer_nvlink_one_sided", ""},
    {row_size, MOELINK_MANAGER_TWO_SIDED, MOELINK_LAYOUT_PACKED, 1, "flashinfer_nvlink_two_sided", ""},
    {row_size, MOELINK_MANAGER_TWO_SIDED, MOELINK_LAYOUT_PACKED, 1, "flashinfer_all2allv", ""},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_PACKED, 0, "deepep_high_throughput",
     "DeepEP's buffers are not used: the one-sided manager, in its compact layout, within one NVLink domain"},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_EXPERT_PADDED, 0, "deepep_low_latency",
     "DeepEP's buffers are not used: the one-sided manager, padded per expert, within one NVLink domain"},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_PACKED, 0, "mori_high_throughput", "mori is for ROCm: the one-sided manager, in its compact layout"},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_EXPERT_PADDED, 0, "mori_low_latency", "mori is for ROCm: the one-sided manager, padded per expert"},
    {row_size, MOELINK_MANAGER_ONE_SIDED, MOELINK_LAYOUT_EXPERT_PADDED, 0, "nixl_ep",
     "NIXL's device interface is not used: the one-sided manager, padded per expert, within one NVLink domain"},
    {row_size, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_LAYOUT_PACKED, 0, "naive", "vLLM has removed it and takes allgather_reducescatter instead"},
    {row_size, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_LAYOUT_PACKED, 0, "pplx", "vLLM has removed it and takes allgather_reducescatter instead"},
};

}  // namespace

}  // namespace moelink

using namespace moelink;

moelink_status moelink_all2all_backend_find(const char *name, moelink_all2all_backend *out) {
    return guard("moelink_all2all_backend_find", [&] {
        not_null(name, "name");
        check_output(out, "out");
        std::string known;
        for (const moelink_all2all_backend &backend : backends) {
            if (std::strcmp(name, backend.name) == 0) return write_output(out, backend, "out");
            known += (known.empty() ? "" : ", ") + std::string(backend.name);
        }
        fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no all-to-all back end \"{}\"; there are: {}", name, known);
    });
}

moelink_status moelink_all2all_backend_at(int32_t index, moelink_all2all_backend *out) {
    return guard("moelink_all2all_backend_at", [&] {
        check_output(out, "out");
        constexpr auto count = static_cast<int32_t>(std::size(backends));
        if (index < 0 || index >= count) fail(MOELINK_ERR_INVALID_ARGUMENT, "index is {}; there are {} back ends", index, count);
        write_output(out, backends[index], "out");
    });
}

const char *moelink_layout_name(int32_t layout) {
    switch (layout) {
        case MOELINK_LAYOUT_RANK_MAJOR: return "rank-major";
        case MOELINK_LAYOUT_PACKED: return "packed";
        case MOELINK_LAYOUT_EXPERT_MAJOR: return "expert-major";
        case MOELINK_LAYOUT_EXPERT_PADDED: return "expert-padded";
        default: return "unknown";
    }
}
