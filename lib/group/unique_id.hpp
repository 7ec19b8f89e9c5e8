// What is inside a moelink_unique_id.
#pragma once

#include "group/auth.hpp"
#include "group/endpoint.hpp"

#include <moelink/group.h>

namespace moelink {

struct UniqueId {
    char magic[8];
    uint32_t version;  // of the protocol; stays at this place in every version
    int32_t size;
    Session session;
    Secret secret;
    Endpoint endpoint;
    uint8_t reserved[2];
};
static_assert(sizeof(UniqueId) == 240 && sizeof(UniqueId) <= sizeof(moelink_unique_id));

UniqueId make_unique_id(int size);
moelink_unique_id encode(const UniqueId &id);
// Throws Error: INVALID_ARGUMENT when the bytes are no id, MISMATCH when they are one of another protocol version.
UniqueId decode(const moelink_unique_id &bytes);

}  // namespace moelink
