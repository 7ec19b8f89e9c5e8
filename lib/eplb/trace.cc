#include "eplb/trace.hpp"

#include "eplb/shape.hpp"
#include "eplb/text.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace moelink::eplb {

namespace {

constexpr const char *kind = "moelink-eplb-trace";
constexpr int64_t version = 1;
constexpr size_t longest_name = 255;

bool is_name(std::string_view name) {
    return name.size() <= longest_name && std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < ' ' || c == 127; });
}

}  // namespace

Trace::Trace(int32_t layers, int32_t experts) : layers_(layers), experts_(experts) {
    check_size(layers, MOELINK_EPLB_MAX_LAYERS, "layers");
    check_size(experts, MOELINK_EPLB_MAX_EXPERTS, "experts");
}

Trace::Trace(const char *path) {
    TextReader reader(path);
    if (reader.is_kind(kind)) {
        read(reader);
    } else {
        read_commas(reader);
    }
}

void Trace::append(std::string_view name, const double *load) {
    if (!is_name(name) || (!name.empty() && name.back() == ' ')) {
        fail(MOELINK_ERR_INVALID_ARGUMENT,
             "a step's name is one line of at most {} bytes without control characters and without a blank at the end", longest_name);
    }
    const auto count = static_cast<size_t>(layers_) * static_cast<size_t>(experts_);
    for (size_t i = 0; i < count; ++i) {
        if (!(load[i] >= 0) || std::isinf(load[i])) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "the load of layer {}, expert {} is {}; it must be finite and 0 or more",
                 i / static_cast<size_t>(experts_), i % static_cast<size_t>(experts_), load[i]);
        }
    }
    steps_.push_back({std::string(name), std::vector<double>(load, load + count)});
}

void Trace::save(const char *path) const {
    std::string text = fmt::format("{} {}\nlayers {}\nexperts {}\n", kind, version, layers_, experts_);
    for (const Step &step : steps_) {
        text += step.name.empty() ? "step\n" : fmt::format("step {}\n", step.name);
        for (size_t i = 0; i < step.load.size(); ++i) {
            if (i % static_cast<size_t>(experts_) == 0) text += i == 0 ? "load" : "\nload";
            fmt::format_to(std::back_inserter(text), " {}", step.load[i]);
        }
        text += '\n';
    }
    write_checked(path, std::move(text));
}

void Trace::read(TextReader &reader) {
    reader.need_kind(kind, version);
    layers_ = reader.need_size("layers", MOELINK_EPLB_MAX_LAYERS);
    experts_ = reader.need_size("experts", MOELINK_EPLB_MAX_EXPERTS);
    for (;;) {
        reader.need_line("a step or the checksum");
        if (!reader.skip_word("step")) break;
        Step step;
        const size_t at = reader.column();
        step.name = reader.rest();
        if (!is_name(step.name)) {
            reader.set_column(at);
            reader.fail_here("a step's name has at most {} bytes and no control characters", longest_name);
        }
        for (int32_t layer = 0; layer < layers_; ++layer) {
            reader.need_line("a layer's loads");
            reader.need_word("load");
            for (int32_t expert = 0; expert < experts_; ++expert) step.load.push_back(reader.need_load(' '));
            reader.need_end();
        }
        steps_.push_back(std::move(step));
    }
    reader.need_checksum();
}

void Trace::read_commas(TextReader &reader) {
    layers_ = 1;
    while (reader.next_line()) {
        const std::string_view line = reader.line();
        if (line.empty()) continue;
        const size_t comma = line.find(',');
        Step step;
        step.name = line.substr(0, comma);
        while (step.name.ends_with(' ')) step.name.pop_back();  // as lines end in a trace
        if (comma == std::string_view::npos || !is_name(step.name)) {
            reader.fail_here("a line is NAME,LOAD,LOAD,...; a trace begins with \"{} {}\"", kind, version);
        }
        reader.set_column(comma + 1);
        while (!reader.at_end()) step.load.push_back(reader.need_load(','));
        reader.set_column(line.size());
        if (steps_.empty()) {
            if (step.load.size() > MOELINK_EPLB_MAX_EXPERTS) {
                reader.fail_here("{} loads; a layer has at most {}", step.load.size(), int{MOELINK_EPLB_MAX_EXPERTS});
            }
            experts_ = static_cast<int32_t>(step.load.size());
        } else if (step.load.size() != static_cast<size_t>(experts_)) {
            reader.fail_here("{} loads, and the first line has {}", step.load.size(), experts_);
        }
        steps_.push_back(std::move(step));
    }
    if (steps_.empty()) reader.fail_here("no line of the form NAME,LOAD,LOAD,...");
}

}  // namespace moelink::eplb
