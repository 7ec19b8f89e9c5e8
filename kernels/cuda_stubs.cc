// Stands in for the CUDA kernels in a build without CUDA. The library refuses CUDA groups before any of these is reached.
#include "arrange.hpp"
#include "strips.hpp"
#include "two_sided.hpp"

namespace moelink::kernels::cuda {

namespace {
constexpr Result not_built = -1;
}

const char *error_text(Result) { return "this build has no CUDA"; }
Result load_kernels() { return not_built; }
Result dispatch(const DispatchParams &, const Launch &) { return not_built; }
Result combine(const CombineParams &, const Launch &) { return not_built; }
Result alltoallv(const FifoCall &, const Launch &) { return not_built; }
Result alltoallv_combine(const FifoCombine &, const Launch &) { return not_built; }
Result gather_ids(const GatherIds &, CUstream_st *) { return not_built; }
Result mask_ids(const MaskIds &, CUstream_st *) { return not_built; }
Result copy_rows(const CopyRows &, CUstream_st *) { return not_built; }
Result add_planes(const AddPlanes &, CUstream_st *) { return not_built; }
Result arrange(const ArrangeParams &, CUstream_st *) { return not_built; }
Result gather_experts(const GatherExperts &, CUstream_st *) { return not_built; }
Result unpack(const Unpack &, CUstream_st *) { return not_built; }
Result count_loads(const CountLoads &, CUstream_st *) { return not_built; }
Result route(const RouteParams &, CUstream_st *) { return not_built; }
Result record_load(const RecordParams &, CUstream_st *) { return not_built; }
Result sum_load(const SumParams &, CUstream_st *) { return not_built; }
Result copy_strips(const StripCopy *, size_t, int, CUstream_st *) { return not_built; }

}  // namespace moelink::kernels::cuda
