#include "eplb/strip_copier.hpp"

#include "kernels/strips.hpp"
#include "moe/backend.hpp"

#include <algorithm>

namespace moelink::eplb {

namespace {

constexpr uint64_t small_strip = 256 << 10;  // [bytes] below which a copy engine's start is not hidden by the copy

bool dense(const Strip &strip) { return strip.rows == 1 || strip.row_stride == strip.row_bytes; }

}  // namespace

void SmBudget::describe(moelink_eplb_comm_info &info) const {
    info.sm_budget = sm_budget;
    info.sms = most();
    info.read_sms = from_peers;
}

bool many_small_strips(std::span<const ExpertCopy> copies) {
    uint64_t strips = 0, bytes = 0;
    for (const ExpertCopy &copy : copies) {
        for (size_t i = 0; i < copy.to.size(); ++i) {
            strips += dense(copy.to[i]) && dense(copy.from[i]) ? 1 : copy.to[i].rows;
            bytes += copy.to[i].bytes();
        }
    }
    return strips > 1 && bytes / strips < small_strip;
}

StripCopier::StripCopier(const Device &device, SmBudget budget) : device_(device), budget_(budget) {
    if (budget.sm_budget == -1) return;
    DeviceGuard guard(device_);
    check_launch(kernels::cuda::load_kernels(), "loading the kernels");
}

int32_t StripCopier::sms_for(std::span<const ExpertCopy> copies, bool alone) const {
    if (!std::all_of(copies.begin(), copies.end(), [](const ExpertCopy &copy) { return copy.by_kernels; })) return 0;
    if (!copies.empty() && copies[0].inside) return alone ? budget_.alone : budget_.inside;
    return budget_.sm_budget > 0 || many_small_strips(copies) ? budget_.from_peers : 0;
}

void StripCopier::copy(std::span<const ExpertCopy> copies, moelink_stream stream, bool alone) {
    const int32_t sms = sms_for(copies, alone);
    if (sms == 0) {
        for (const ExpertCopy &copy : copies) copy_strips(device_, copy.to, copy.from, stream);
        return;
    }
    std::vector<kernels::StripCopy> strips;
    for (const ExpertCopy &copy : copies) {
        for (size_t i = 0; i < copy.to.size(); ++i) {
            const Strip &to = copy.to[i], &from = copy.from[i];
            strips.push_back({to.data, from.data, to.rows, to.row_bytes, to.row_stride, from.row_stride});
        }
    }
    DeviceGuard guard(device_);
    check_launch(kernels::cuda::copy_strips(strips.data(), strips.size(), sms, stream), "copying rows");
    copies_by_sms += copies.size();
    if (!copies.empty() && !copies[0].inside) reads_by_sms += copies.size();
}

std::string StripCopier::describe() const {
    if (budget_.sm_budget == -1) return "rows are copied by the copy engines";
    if (budget_.sm_budget > 0) return fmt::format("rows are copied by {} multiprocessors", budget_.inside);
    return fmt::format("peers' rows are copied by {} multiprocessors where tensors are small (below {} KiB on average), else by the copy engines, "
                       "and rows inside the device by {} multiprocessors, or by {} while none come from peers",
                       budget_.from_peers, small_strip >> 10, budget_.inside, budget_.alone);
}

}  // namespace moelink::eplb
