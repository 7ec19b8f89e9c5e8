// Which provider all ranks can use, found by trial.
#pragma once

#include "memory/provider.hpp"
#include "memory/request.hpp"

#include <optional>
#include <string>

namespace moelink {

class Choice {
public:
    // Collective. Tries the providers that the request allows with one granule on all ranks; stops at the first that works, or
    // tries all of them.
    Choice(Group &group, const Request &request, bool all, const Deadline &deadline);

    // NULL when none works.
    const Provider *taken() const { return taken_; }
    // provider and bytes are 0 when none works.
    const moelink_memory_info &info() const { return info_; }
    // A line a provider that was tried.
    const std::string &reasons() const { return reasons_; }
    // Throws why none works.
    [[noreturn]] void fail_alike() const;

private:
    void try_one(Group &group, const Provider &provider, const Deadline &deadline);
    void refuse(const Provider &provider, moelink_status status, const std::string &why);

    const Provider *taken_ = nullptr;
    moelink_memory_info info_ = MOELINK_MEMORY_INFO_INIT;
    std::string reasons_;
    bool out_of_memory_ = false;
};

// "a\nb\n" as "a; b".
std::string one_line(const std::string &lines);

// What was chosen for a request of the caller's own addresses.
moelink_memory_info external_info(const Group &group, const Request &request);

// Collective, at the end of copies that all ranks hold: peers' copies are given up everywhere before any is freed.
void retire(Group &group, std::unique_ptr<Copies> copies, const Deadline &deadline);

}  // namespace moelink
