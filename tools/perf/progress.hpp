// One line of progress on standard error: rewritten on a terminal, now and then a new one elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace perf {

class Progress {
public:
    Progress();
    void show(const std::string &text);
    void clear();  // before anything else is printed

private:
    bool terminal_;
    bool shown_ = false;
    std::chrono::steady_clock::time_point last_;
};

}  // namespace perf
