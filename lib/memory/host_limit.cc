#include "memory/host_limit.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace moelink {

namespace {

constexpr uint64_t unknown = std::numeric_limits<uint64_t>::max();

std::optional<uint64_t> read_number(const std::string &path) {
    std::ifstream file(path);
    uint64_t value = 0;
    if (file >> value) return value;  // "max" is no number
    return std::nullopt;
}

// The number after a word at the beginning of a line.
uint64_t read_field(const std::string &path, const std::string &word) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, word.size(), word) == 0) return std::strtoull(line.c_str() + word.size(), nullptr, 10);
    }
    return 0;
}

uint64_t system_left() {
    const char *path = "/proc/meminfo";
    uint64_t available = read_field(path, "MemAvailable:");
    if (available == 0) return unknown;
    return (available + read_field(path, "SwapFree:")) * 1024;
}

uint64_t group_left(const std::string &folder, const char *limit_name, const char *used_name, const char *reclaimable) {
    std::optional<uint64_t> limit = read_number(folder + limit_name);
    std::optional<uint64_t> used = read_number(folder + used_name);
    if (!limit || !used) return unknown;
    uint64_t cache = read_field(folder + "/memory.stat", reclaimable);
    uint64_t taken = *used > cache ? *used - cache : 0;
    return *limit > taken ? *limit - taken : 0;
}

// The least over a control group and all above it.
uint64_t groups_left(const std::string &root, std::string path, const char *limit, const char *used, const char *reclaimable) {
    uint64_t least = unknown;
    while (true) {
        least = std::min(least, group_left(root + path, limit, used, reclaimable));
        size_t slash = path.find_last_of('/');
        if (path.empty() || slash == std::string::npos) return least;
        path.resize(slash);
    }
}

uint64_t control_groups_left() {
    std::ifstream file("/proc/self/cgroup");
    uint64_t least = unknown;
    for (std::string line; std::getline(file, line);) {  // "number:controllers:path"
        std::istringstream parts(line);
        std::string number, controllers, path;
        std::getline(parts, number, ':');
        std::getline(parts, controllers, ':');
        std::getline(parts, path);
        if (path == "/") path.clear();
        if (controllers.empty()) {
            least = std::min(least, groups_left("/sys/fs/cgroup", path, "/memory.max", "/memory.current", "inactive_file "));
        } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
            least = std::min(least, groups_left("/sys/fs/cgroup/memory", path, "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                                "total_inactive_file "));
        }
    }
    return least;
}

}  // namespace

uint64_t host_bytes_available() { return std::min(system_left(), control_groups_left()); }

}  // namespace moelink
