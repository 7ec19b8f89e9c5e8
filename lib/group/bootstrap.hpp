// The ways into a group.
#pragma once

#include "group/group.hpp"

#include <vector>

namespace moelink {

// All three are collective and throw Error.
Ref<Group> join_by_id(const moelink_unique_id &id, Group::Place place);
Ref<Group> join_with(const moelink_bootstrap &boot, Group::Place place);
std::vector<Ref<Group>> make_threads(std::vector<Group::Place> places);

}  // namespace moelink
