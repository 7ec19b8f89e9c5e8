// Some libraries take over the signals of crashes, and others, when they or their plugins are loaded; the process had its own handlers.
#pragma once

#include <csignal>
#include <map>

namespace moelink {

// Handlers are put back when it goes.
class KeptSignals {
public:
    KeptSignals() {
        for (int number = 1; number < 32; ++number) {
            struct sigaction action = {};
            if (sigaction(number, nullptr, &action) == 0) kept_.emplace(number, action);
        }
    }
    ~KeptSignals() {
        for (const auto &[number, action] : kept_) sigaction(number, &action, nullptr);
    }
    KeptSignals(const KeptSignals &) = delete;
    KeptSignals &operator=(const KeptSignals &) = delete;

private:
    std::map<int, struct sigaction> kept_;
};

}  // namespace moelink
