// The loads of moelink-perf eplb, and tokens that follow them.
#pragma once

#include <string>
#include <vector>

#include <moelink/moelink.h>

#include "check.hpp"
#include "options.hpp"
#include "session.hpp"

namespace perf {

using Map = std::vector<int32_t>;  // phy2log [layers, slots]

// One topic of the load file, for the layers and experts that the user wants.
struct Topic {
    std::string name;
    std::vector<double> loads;  // [layers, experts]
};

// Reads the file and settles layers, experts and slots of the options. Where there are more layers than in the file, they are
// its layers again with the experts turned further, so that no two are alike; where there are fewer experts, they share the
// load of the others. Throws std::invalid_argument.
std::vector<Topic> read_topics(EplbOptions &options);

moelink_eplb_shape shape_of(const EplbOptions &options);
// MOELINK_EPLB_* of a name such as "capacity". Throws std::invalid_argument.
int32_t policy_of(const std::string &name);

// Dispatch and combine of the tokens, as moelink-perf pair would run them.
PairOptions pair_of(const EplbOptions &options);

// The first layer's traffic of a topic: every rank's tokens with the slots that the map gives them. Collective.
World traffic(const Session &session, const EplbOptions &options, const Topic &topic, const Map &map);

}  // namespace perf
