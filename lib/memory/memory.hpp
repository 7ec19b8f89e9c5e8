// What the rest of the library knows of symmetric memory.
#pragma once

#include "base/ref.hpp"
#include "group/group.hpp"

#include <moelink/memory.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

namespace moelink {

class Memory : public Referenced {
public:
    using Name = std::array<uint8_t, 16>;

    // Collective over the group; throws Error alike on all ranks. Fresh pages are zero.
    static Ref<Memory> create(Ref<Group> group, const moelink_memory_params &params);
    static moelink_memory_info query(Group &group, const moelink_memory_params &params, std::string *reasons);

    void *peer(int rank) const { return peers_[static_cast<size_t>(rank)]; }
    void *mine() const { return peer(group_->rank()); }
    uint64_t bytes() const { return info_.bytes; }
    const moelink_memory_info &info() const { return info_; }
    const std::string &reasons() const { return reasons_; }
    Group &group() const { return *group_; }
    // The same on all ranks, and no other memory's.
    const Name &name() const { return name_; }

    // An object of this process whose own copy holds these bytes, or one of this name whose mappings are a device's (-1: the host);
    // NULL when there is none.
    static Ref<Memory> holding(const void *address, uint64_t size);
    static Ref<Memory> named(const Name &name, int ordinal);

    // One rank's mapping of all copies, owned by the provider that made it.
    struct Mapping {
        virtual ~Mapping() = default;
        std::vector<void *> peers;
        uint64_t bytes = 0;
        uint64_t granularity = 0;
    };

protected:
    ~Memory() override;

private:
    Memory(Ref<Group> group, const Name &name, moelink_memory_info info, std::string reasons, std::unique_ptr<Mapping> mapping);
    Ref<Group> group_;
    Name name_;
    moelink_memory_info info_;
    std::string reasons_;
    std::unique_ptr<Mapping> mapping_;
    std::vector<void *> peers_;
};

}  // namespace moelink

struct moelink_memory {
    moelink::Ref<moelink::Memory> object;
};
