#include "group/unique_id.hpp"

#include "base/error.hpp"

#include <cstring>

namespace moelink {

namespace {

constexpr char id_magic[8] = {'m', 'o', 'e', 'l', 'i', 'd', '\r', '\n'};

}  // namespace

UniqueId make_unique_id(int size) {
    UniqueId id{};
    std::memcpy(id.magic, id_magic, sizeof id_magic);
    id.version = protocol_version;
    id.size = size;
    id.session = random_session();
    id.secret = random_secret();
    return id;
}

moelink_unique_id encode(const UniqueId &id) {
    moelink_unique_id bytes{};
    std::memcpy(bytes.bytes, &id, sizeof id);
    return bytes;
}

UniqueId decode(const moelink_unique_id &bytes) {
    UniqueId id;
    std::memcpy(&id, bytes.bytes, sizeof id);
    if (std::memcmp(id.magic, id_magic, sizeof id_magic) != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "id is not what moelink_rendezvous_create wrote; all of its {} bytes must be carried",
             sizeof bytes.bytes);
    }
    if (id.version != protocol_version) {
        fail(MOELINK_ERR_MISMATCH, "id was made by a library of protocol version {}, this library speaks version {}; use the "
                                   "same library on all ranks",
             id.version, protocol_version);
    }
    if (id.size < 1 || id.size > MOELINK_GROUP_MAX_RANKS || id.endpoint.count < 1 || id.endpoint.count > Endpoint::most) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "id is damaged: it names {} ranks and {} addresses", id.size, id.endpoint.count);
    }
    return id;
}

}  // namespace moelink
