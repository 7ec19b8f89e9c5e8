// Transfers into rounds in which no rank sends two or receives two.
#pragma once

#include <span>
#include <vector>

namespace moelink::eplb {

struct Endpoints {
    int from = 0;
    int to = 0;
};

// A round for each transfer, from 0; as many rounds as the busiest rank has sends or receives.
// Source: edges of a bipartite graph need no more colours than its largest degree (Koenig), by alternating paths.
std::vector<int> colour_rounds(std::span<const Endpoints> transfers, int ranks);

}  // namespace moelink::eplb
