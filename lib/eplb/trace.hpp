// Loads step by step, and their file.
#pragma once

#include <moelink/eplb.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moelink::eplb {

class TextReader;

class Trace {
public:
    Trace(int32_t layers, int32_t experts);
    explicit Trace(const char *path);

    void append(std::string_view name, const double *load);
    void save(const char *path) const;

    struct Step {
        std::string name;
        std::vector<double> load;  // [layers, experts]
    };
    int32_t layers() const { return layers_; }
    int32_t experts() const { return experts_; }
    const std::vector<Step> &steps() const { return steps_; }

private:
    void read(TextReader &reader);
    void read_commas(TextReader &reader);

    int32_t layers_ = 0;
    int32_t experts_ = 0;
    std::vector<Step> steps_;
};

}  // namespace moelink::eplb

struct moelink_eplb_trace {
    moelink::eplb::Trace object;
};
