#include "group/agreement.hpp"

#include <algorithm>

namespace moelink {

void settle(Group &group, const Outcome &mine, const Deadline &deadline) {
    struct Word {
        int32_t status;
        int32_t secondhand;
    };
    std::vector<Word> all = group.allgather(Word{mine.status, mine.secondhand}, deadline);
    auto failed = [](const Word &word) { return word.status != MOELINK_OK; };
    auto first = std::find_if(all.begin(), all.end(), [&](const Word &word) { return failed(word) && word.secondhand == 0; });
    if (first == all.end()) first = std::find_if(all.begin(), all.end(), failed);
    if (first == all.end()) return;
    std::vector<std::string> texts = group.allgather_text(mine.text, deadline);
    auto rank = first - all.begin();
    auto others = std::count_if(all.begin(), all.end(), failed) - 1;
    std::string full = fmt::format("rank {}: {}", rank, texts[static_cast<size_t>(rank)]);
    if (others > 0) full += fmt::format(" (and {} more {})", others, others == 1 ? "rank" : "ranks");
    throw Refusal(first->status, std::move(full));
}

}  // namespace moelink
