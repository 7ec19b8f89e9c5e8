#include "traffic.hpp"

#include <algorithm>
#include <vector>

namespace perf {

Traffic count_traffic(const World &world) {
    const auto ranks = static_cast<size_t>(world.ranks);
    std::vector<int64_t> out(ranks);
    std::vector<int64_t> in(ranks);
    std::vector<int64_t> own(ranks);
    std::vector<int64_t> last(ranks, -1);  // the token that was last counted for a rank
    int64_t number = 0;
    for (size_t source = 0; source < ranks; ++source) {
        for (int64_t token = 0; token < world.tokens[source]; ++token, ++number) {
            const int32_t *ids = world.ids[source].data() + token * world.topk;
            for (int k = 0; k < world.topk; ++k) {
                if (ids[k] < 0 || ids[k] >= world.experts) {
                    continue;
                }
                const auto to = static_cast<size_t>(owner_of(ids[k], world.experts, world.ranks));
                if (last[to] == number) {
                    continue;
                }
                last[to] = number;
                if (to == source) {
                    ++own[source];
                } else {
                    ++out[source];
                    ++in[to];
                }
            }
        }
    }
    Traffic most;
    for (size_t rank = 0; rank < ranks; ++rank) {
        most.crossed = std::max(most.crossed, static_cast<double>(std::max(out[rank], in[rank])));
        most.own = std::max(most.own, static_cast<double>(own[rank]));
        most.sent = std::max(most.sent, static_cast<double>(out[rank] + own[rank]));
    }
    return most;
}

Traffic uniform_traffic(int experts, int topk, int ranks, int64_t tokens) {
    // Only two kinds of ranks: the first ones may have an expert more than the others.
    const auto gets = [&](int count) {
        double none = 1;
        for (int k = 0; k < topk; ++k) {
            none *= std::max(0.0, static_cast<double>(experts - count - k) / (experts - k));
        }
        return 1 - none;
    };
    const int more = experts % ranks;
    const double most = gets(more > 0 ? experts / ranks + 1 : experts / ranks);
    const double least = gets(experts / ranks);
    const double all = more * most + (ranks - more) * least;
    const auto count = static_cast<double>(tokens);
    // All ranks have as many tokens, so none sends more than the one with most experts receives.
    return {count * (ranks - 1) * most, count * most, count * all};
}

Traffic spread_traffic(int topk, int ranks, int64_t tokens) {
    const double sent = static_cast<double>(tokens) * std::min(topk, ranks);
    return {sent * (ranks - 1) / ranks, sent / ranks, sent};
}

}  // namespace perf
