#include "group/agreement.hpp"

#include <algorithm>

namespace moelink {

void settle(Group &group, const Outcome &mine, const Deadline &deadline) {
    std::vector<int32_t> all = group.allgather<int32_t>(mine.status, deadline);
    auto failed = [](int32_t status) { return status != MOELINK_OK; };
    auto first = std::find_if(all.begin(), all.end(), failed);
    if (first == all.end()) return;
    std::vector<std::string> texts = group.allgather_text(mine.text, deadline);
    auto rank = first - all.begin();
    auto others = std::count_if(first + 1, all.end(), failed);
    std::string full = fmt::format("rank {}: {}", rank, texts[static_cast<size_t>(rank)]);
    if (others > 0) full += fmt::format(" (and {} more {})", others, others == 1 ? "rank" : "ranks");
    throw Refusal(*first, std::move(full));
}

}  // namespace moelink
