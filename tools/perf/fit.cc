#include "fit.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include <fmt/format.h>

namespace perf {

namespace {

constexpr int unknowns = 3;  // of a line: t0, 1 / B, 1 / L
constexpr double least_angle = 0.02;   // [rad] between the columns of crossed and local bytes, from which on they are told apart
constexpr double least_error = 1e-12;  // mean square of relative errors below which one fit is no better than another

using Columns = std::array<std::vector<double>, unknowns>;

double dot(const std::vector<double> &a, const std::vector<double> &b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

// Takes the part along `unit` out of a vector.
void remove_part(std::vector<double> &vector, const std::vector<double> &unit) {
    const double along = dot(vector, unit);
    for (size_t i = 0; i < vector.size(); ++i) {
        vector[i] -= along * unit[i];
    }
}

// Scales to length 1; false when there is nothing left of what was `before` long.
bool normalise(std::vector<double> &vector, double before) {
    const double length = std::sqrt(dot(vector, vector));
    if (!(length > 1e-9 * before)) {
        return false;
    }
    for (double &value : vector) {
        value /= length;
    }
    return true;
}

// Each row divided by its time, so that the errors are relative.
Columns weighted_columns(const std::vector<Point> &points) {
    Columns columns;
    for (const Point &point : points) {
        columns[0].push_back(1 / point.us);
        columns[1].push_back(point.work.crossed / point.us);
        columns[2].push_back(point.work.local / point.us);
    }
    return columns;
}

bool tells_apart(const Columns &columns) {
    std::vector<double> constant = columns[0];
    normalise(constant, 0);
    std::vector<double> parts[2];
    for (int i = 0; i < 2; ++i) {
        parts[i] = columns[static_cast<size_t>(i) + 1];
        const double before = std::sqrt(dot(parts[i], parts[i]));
        remove_part(parts[i], constant);
        if (!normalise(parts[i], before)) {
            return false;
        }
    }
    remove_part(parts[1], parts[0]);
    return std::sqrt(dot(parts[1], parts[1])) >= least_angle;
}

// Least squares on some of the columns by modified Gram-Schmidt; the other unknowns are 0. False when the columns depend on each
// other.
bool solve(const Columns &columns, const std::vector<double> &wanted, unsigned used, std::array<double, unknowns> &result) {
    std::vector<std::vector<double>> units;
    std::vector<std::vector<double>> upper;  // [column][row of R]
    std::vector<size_t> which;
    for (size_t c = 0; c < unknowns; ++c) {
        if ((used >> c & 1) == 0) {
            continue;
        }
        std::vector<double> column = columns[c];
        const double before = std::sqrt(dot(column, column));
        std::vector<double> r;
        for (const auto &unit : units) {
            r.push_back(dot(column, unit));
            remove_part(column, unit);
        }
        r.push_back(std::sqrt(dot(column, column)));
        if (!normalise(column, before)) {
            return false;
        }
        units.push_back(std::move(column));
        upper.push_back(std::move(r));
        which.push_back(c);
    }
    std::vector<double> rest = wanted;
    std::vector<double> right;
    for (const auto &unit : units) {
        right.push_back(dot(rest, unit));
        remove_part(rest, unit);
    }
    result.fill(0);
    for (size_t i = units.size(); i-- > 0;) {
        double value = right[i];
        for (size_t j = i + 1; j < units.size(); ++j) {
            value -= upper[j][i] * result[which[j]];
        }
        result[which[i]] = value / upper[i][i];
    }
    return true;
}

double mean_square(const Line &line, const std::vector<Point> &points) {
    double sum = 0;
    for (const Point &point : points) {
        const double error = line.us(point.work) / point.us - 1;
        sum += error * error;
    }
    return sum / static_cast<double>(points.size());
}

// With three unknowns, the best solution that is nowhere negative is found by trying every set of unknowns that are not 0.
Line fit_line(const std::vector<Point> &points, double least_us_a_crossed_byte) {
    const Columns columns = weighted_columns(points);
    std::vector<double> wanted;
    for (const Point &point : points) {
        const double certain_us = point.work.sync_us + least_us_a_crossed_byte * point.work.crossed;
        wanted.push_back((point.us - certain_us) / point.us);
    }
    Line best;
    best.splits_local = tells_apart(columns);
    best.points = static_cast<int>(points.size());
    double least = std::numeric_limits<double>::infinity();
    const unsigned sets = best.splits_local ? 1u << unknowns : 1u << (unknowns - 1);
    for (unsigned used = 0; used < sets; ++used) {
        std::array<double, unknowns> found{};
        if (!solve(columns, wanted, used, found) || std::any_of(found.begin(), found.end(), [](double value) { return value < 0; })) {
            continue;
        }
        Line line = best;
        line.t0_us = found[0];
        line.us_a_crossed_byte = least_us_a_crossed_byte + found[1];
        line.us_a_local_byte = found[2];
        const double error = mean_square(line, points);
        if (error < least) {
            least = error;
            best = line;
        }
    }
    return best;
}

std::set<int64_t> token_counts(const std::vector<Point> &points) {
    std::set<int64_t> counts;
    for (const Point &point : points) {
        counts.insert(point.work.tokens);
    }
    return counts;
}

bool enough(const std::vector<Point> &points) {
    return points.size() >= least_fit_points && token_counts(points).size() >= 2;
}

// Part of the points, for a line of its own: of two batch sizes close together the noise would be the rate.
bool enough_for_part(const std::vector<Point> &points) { return enough(points) && token_counts(points).size() >= 3; }

// Schwarz's criterion ("Estimating the dimension of a model", 1978): what a better fit must be worth.
double criterion(double mean_square_error, size_t points, int parameters) {
    const auto n = static_cast<double>(points);
    return n * std::log(std::max(mean_square_error, least_error)) + parameters * std::log(n);
}

}  // namespace

Fit fit_points(const std::vector<Point> &points, const std::string &what, double least_us_a_crossed_byte) {
    if (!enough(points)) {
        throw std::invalid_argument(fmt::format(
            "{}: {} measured points with {} different numbers of tokens are too few: a fit of {} unknowns takes at least {} points and 2 "
            "numbers of tokens",
            what, points.size(), token_counts(points).size(), unknowns, least_fit_points));
    }
    for (const Point &point : points) {
        if (!(point.us > 0) || !std::isfinite(point.us)) {
            throw std::invalid_argument(fmt::format("{}: a measured time is {} us", what, point.us));
        }
    }
    Fit best;
    best.few = best.many = fit_line(points, least_us_a_crossed_byte);
    double least = criterion(mean_square(best.many, points), points.size(), unknowns);
    for (const int64_t tokens : token_counts(points)) {
        std::vector<Point> few;
        std::vector<Point> many;
        for (const Point &point : points) {
            (point.work.tokens <= tokens ? few : many).push_back(point);
        }
        if (!enough_for_part(few) || !enough_for_part(many)) {
            continue;
        }
        const Fit fit{fit_line(few, least_us_a_crossed_byte), fit_line(many, least_us_a_crossed_byte), tokens};
        const auto share = static_cast<double>(few.size()) / static_cast<double>(points.size());
        const double error = share * mean_square(fit.few, few) + (1 - share) * mean_square(fit.many, many);
        const double value = criterion(error, points.size(), 2 * unknowns + 1);
        if (value < least) {
            least = value;
            best = fit;
        }
    }
    return best;
}

const Point &largest_batch(const std::vector<Point> &points) {
    return *std::max_element(points.begin(), points.end(),
                             [](const Point &a, const Point &b) { return a.work.tokens < b.work.tokens; });
}

Errors Errors::of(const std::vector<Point> &points, const std::vector<double> &modelled_us) {
    Errors errors;
    std::vector<double> sizes;
    for (size_t i = 0; i < points.size(); ++i) {
        const double error = modelled_us[i] / points[i].us - 1;
        sizes.push_back(std::abs(error));
        if (i == 0 || std::abs(error) > std::abs(errors.worst)) {
            errors.worst = error;
            errors.worst_tokens = points[i].work.tokens;
            errors.worst_slice = points[i].slice_of;
        }
    }
    std::sort(sizes.begin(), sizes.end());
    errors.points = static_cast<int>(sizes.size());
    errors.median = sizes.empty() ? 0 : sizes[(sizes.size() - 1) / 2];
    return errors;
}

Errors errors_of(const Fit &fit, const std::vector<Point> &points) {
    std::vector<double> modelled;
    for (const Point &point : points) {
        modelled.push_back(fit.us(point.work));
    }
    return Errors::of(points, modelled);
}

Errors left_out_errors(const std::vector<Point> &points, LeftOut what, double least_us_a_crossed_byte) {
    const auto key = [&](const Point &point) { return what == LeftOut::tokens ? point.work.tokens : int64_t{point.slice_of}; };
    std::set<int64_t> keys;
    for (const Point &point : points) {
        keys.insert(key(point));
    }
    std::vector<Point> predicted;
    std::vector<double> modelled;
    for (const int64_t left_out : keys) {
        std::vector<Point> kept;
        std::vector<Point> others;
        for (const Point &point : points) {
            (key(point) == left_out ? others : kept).push_back(point);
        }
        if (!enough(kept)) {
            continue;
        }
        const Fit fit = fit_points(kept, "", least_us_a_crossed_byte);
        for (const Point &point : others) {
            predicted.push_back(point);
            modelled.push_back(fit.us(point.work));
        }
    }
    return Errors::of(predicted, modelled);
}

}  // namespace perf
