// The time of an operation as a sum that can be fitted and taken to larger groups:
//
//     t(R) = t0 + t_sync(R) + max(out, in) / B + local / L
//
// t0, B and L come from measured points by least squares of relative errors, none of them negative, B at most
// what the link reaches. A kernel may work differently for
// few and for many tokens, so there may be two such lines, one up to a number of tokens and one above it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "work.hpp"

namespace perf {

struct Point {
    Work work;
    double us = 0;
    int slice_of = 0;  // ranks of the group of which two ranks' slices ran; 0: a whole group
};

struct Line {
    double t0_us = 0;
    double us_a_crossed_byte = 0;  // 1 / B
    double us_a_local_byte = 0;    // 1 / L
    bool splits_local = false;     // the points tell local work from bytes on the link; else 1 / B holds both
    int points = 0;

    double us(const Work &work) const {
        return work.sync_us + t0_us + us_a_crossed_byte * work.crossed + us_a_local_byte * work.local;
    }
};

struct Fit {
    Line few;
    Line many;                 // the same as `few` where one line is enough
    int64_t most_few = 0;      // tokens up to which `few` holds; 0: one line
    const Line &line(int64_t tokens) const { return tokens <= most_few ? few : many; }
    double us(const Work &work) const { return line(work.tokens).us(work); }
};

constexpr int least_fit_points = 4;  // one more than there are unknowns

// No byte crosses faster than least_us_a_crossed_byte: the link's own measured rate, or 0 where that is not known.
// Throws std::invalid_argument, with `what` in it, when there are fewer points than least_fit_points, fewer than two numbers of
// tokens among them, or a time that is not above 0.
Fit fit_points(const std::vector<Point> &points, const std::string &what, double least_us_a_crossed_byte = 0);

// The one with most tokens; there must be some.
const Point &largest_batch(const std::vector<Point> &points);

// Relative errors, (modelled - measured) / measured.
struct Errors {
    int points = 0;
    double median = 0;    // of the absolute errors
    double worst = 0;     // the largest absolute error, with its sign
    int64_t worst_tokens = 0;
    int worst_slice = 0;

    static Errors of(const std::vector<Point> &points, const std::vector<double> &modelled_us);
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Errors, points, median, worst, worst_tokens, worst_slice)

// Errors of a fit on the points that it was made of.
Errors errors_of(const Fit &fit, const std::vector<Point> &points);
enum class LeftOut { tokens, slice };
// Each number of tokens in turn (or each slice, the whole group being one of them) is left out, a fit is made without it, and its
// points are predicted. No points: too few are left for a fit.
Errors left_out_errors(const std::vector<Point> &points, LeftOut what, double least_us_a_crossed_byte = 0);

}  // namespace perf
