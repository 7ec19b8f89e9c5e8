// What a rank tells the launcher: progress, notes, results, errors; the same whether it is a process or a thread.
#pragma once

#include <nlohmann/json.hpp>

namespace perf {

class Channel {
public:
    virtual ~Channel() = default;
    // One message: {"at": text}, {"row": {...}}, {"progress": {...}} (totals so far), {"setting": {...}}, {"note": text}, {"wrong": text},
    // {"error": text}, {"done": n}.
    virtual void send(const nlohmann::json &message) = 0;
};

}  // namespace perf
