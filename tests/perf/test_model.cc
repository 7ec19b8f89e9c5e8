/* The parts of moelink-perf model: rows of a group and of its slices against counts that share no code with them, and fits of points
 * that were made from known parameters. */
#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

extern "C" {
#include <cmocka.h>
}

#include "fit.hpp"
#include "traffic.hpp"
#include "work.hpp"

using namespace perf;

namespace {

void near(double value, double expected, double tolerance) {
    if (!(std::abs(value - expected) <= tolerance * std::max(1.0, std::abs(expected)))) {
        print_error("%.12g, must be %.12g within %g\n", value, expected, tolerance);
        fail();
    }
}

PairOptions options_of(int ranks, int experts, int topk) {
    PairOptions options;
    options.ranks = ranks;
    options.experts = experts;
    options.topk = topk;
    options.hidden = 16;
    return options;
}

World world_of(PairOptions options, int64_t tokens) {
    const auto routings = make_routings(options);
    return World(options, routings.at(0), tokens);
}

// Expected rows of one token a rank over all sets of experts, one after the other.
Traffic enumerated(int experts, int topk, int ranks) {
    std::vector<double> to(static_cast<size_t>(ranks));  // of one token, whatever its rank
    double sets = 0;
    for (uint32_t set = 0; set < 1u << experts; ++set) {
        std::set<int> reached;
        int chosen = 0;
        for (int expert = 0; expert < experts; ++expert) {
            if ((set >> expert & 1) == 0) {
                continue;
            }
            ++chosen;
            int rank = 0;  // ranks hold experts in order, the first experts % ranks of them one more
            for (int end = 0; (end += experts / ranks + (rank < experts % ranks ? 1 : 0)) <= expert;) {
                ++rank;
            }
            reached.insert(rank);
        }
        if (chosen != topk) {
            continue;
        }
        ++sets;
        for (const int rank : reached) {
            to[static_cast<size_t>(rank)] += 1;
        }
    }
    Traffic most;
    for (size_t rank = 0; rank < to.size(); ++rank) {
        double out = 0;
        for (size_t other = 0; other < to.size(); ++other) {
            out += other == rank ? 0 : to[other] / sets;
        }
        const double own = to[rank] / sets;
        most.crossed = std::max({most.crossed, out, own * (ranks - 1)});
        most.own = std::max(most.own, own);
        most.sent = std::max(most.sent, out + own);
    }
    return most;
}

void test_uniform_rows(void **) {
    for (const int ranks : {2, 3, 4, 5, 12}) {
        for (const int topk : {1, 3, 12}) {
            const Traffic expected = enumerated(12, topk, ranks);
            const Traffic got = uniform_traffic(12, topk, ranks, 7);
            near(got.crossed, 7 * expected.crossed, 1e-12);
            near(got.own, 7 * expected.own, 1e-12);
            near(got.sent, 7 * expected.sent, 1e-12);
        }
    }
    // Figures of distinct remote ranks a token that are published for two models.
    near(uniform_traffic(256, 8, 8, 1).crossed, 4.633, 2e-4);
    near(uniform_traffic(384, 6, 16, 1).crossed, 4.843, 2e-4);
    const Traffic spread = spread_traffic(8, 64, 128);
    near(spread.crossed, 128 * 7.875, 1e-12);
    near(spread.own + spread.crossed, spread.sent, 1e-12);
}

void test_counted_rows(void **) {
    for (const int ranks : {2, 4, 7}) {
        PairOptions options = options_of(ranks, 24, 5);
        options.mask = 0.2;
        options.uneven = true;
        const World world = world_of(options, 60);
        Traffic expected;
        for (int rank = 0; rank < ranks; ++rank) {
            int64_t out = 0;
            int64_t in = 0;
            for (int other = 0; other < ranks; ++other) {
                out += other == rank ? 0 : world.rows_between(rank, other);
                in += other == rank ? 0 : world.rows_between(other, rank);
            }
            const auto own = static_cast<double>(world.rows_between(rank, rank));
            expected.crossed = std::max(expected.crossed, static_cast<double>(std::max(out, in)));
            expected.own = std::max(expected.own, own);
            expected.sent = std::max(expected.sent, static_cast<double>(out) + own);
        }
        const Traffic got = count_traffic(world);
        assert_true(got.crossed == expected.crossed && got.own == expected.own && got.sent == expected.sent);
    }
    // Drawn tokens come close to what is expected of them.
    const Traffic drawn = count_traffic(world_of(options_of(8, 64, 6), 4000));
    const Traffic expected = uniform_traffic(64, 6, 8, 4000);
    near(drawn.crossed, expected.crossed, 0.03);
    near(drawn.sent, expected.sent, 0.03);
}

void test_slices(void **) {
    for (const auto &[group, experts] : {std::pair(2, 64), std::pair(3, 10), std::pair(8, 256), std::pair(32, 128), std::pair(72, 100)}) {
        PairOptions options = options_of(group, experts, 8);
        const World whole = world_of(options, 300);
        options.ranks = 2;
        options.slice_of = group;
        const World slice = world_of(options, 300);
        for (const int rank : {0, 1}) {
            assert_int_equal(slice.rows_between(rank, rank), 0);
            for (int64_t token = 0; token < 300; ++token) {
                assert_int_equal(slice.sends(rank, token, 1 - rank), whole.sends(rank, token, 1 - rank));
            }
            // The same experts of the peer, by their place on it.
            const int first = first_expert(1 - rank, experts, group);
            const int first_here = first_expert(1 - rank, experts, 2);
            const auto &ids = whole.ids[static_cast<size_t>(rank)];
            for (size_t i = 0; i < ids.size(); ++i) {
                const int place = ids[i] - first;
                const bool at_peer = owner_of(ids[i], experts, group) == 1 - rank;
                assert_int_equal(slice.ids[static_cast<size_t>(rank)][i], at_peer ? first_here + place : -1);
            }
        }
        assert_true(count_traffic(slice).crossed > 0);
    }
}

constexpr double row = 14336;

// Whole pairs and slices of several groups, with exact times of a known line.
std::vector<Point> made_points(const std::vector<int64_t> &counts, const Line &few, const Line &many, int64_t most_few, double sync_us) {
    std::vector<Point> points;
    for (const int slice_of : {0, 8, 32}) {
        for (const int64_t tokens : counts) {
            const Traffic whole = uniform_traffic(256, 8, 2, tokens);
            const double link = slice_of == 0 ? 0 : uniform_traffic(256, 8, slice_of, tokens).crossed / (slice_of - 1);
            const Traffic traffic = slice_of == 0 ? whole : Traffic{link, 0, link};
            const Work work = work_of(Operation::pair, traffic, tokens, {row, row}, sync_us);
            points.push_back({work, (tokens <= most_few ? few : many).us(work), slice_of});
        }
    }
    return points;
}

const std::vector<int64_t> counts = {1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096};

Line line_of(double t0_us, double link_gbps, double local_gbps) {
    Line line;
    line.t0_us = t0_us;
    line.us_a_crossed_byte = 1e-3 / link_gbps;
    line.us_a_local_byte = local_gbps > 0 ? 1e-3 / local_gbps : 0;
    return line;
}

void same_line(const Line &got, const Line &expected) {
    near(got.t0_us, expected.t0_us, 1e-6);
    near(got.us_a_crossed_byte * 1e6, expected.us_a_crossed_byte * 1e6, 1e-6);
    near(got.us_a_local_byte * 1e6, expected.us_a_local_byte * 1e6, 1e-6);
}

void test_fit_one_line(void **) {
    const Line line = line_of(6.5, 350, 2100);
    const auto points = made_points(counts, line, line, 0, 1.4);
    const Fit fit = fit_points(points, "pair");
    assert_int_equal(fit.most_few, 0);
    same_line(fit.many, line);
    assert_true(fit.many.splits_local);
    assert_int_equal(fit.many.points, 30);
    near(errors_of(fit, points).worst, 0, 1e-9);
    near(left_out_errors(points, LeftOut::tokens).worst, 0, 1e-9);
    near(left_out_errors(points, LeftOut::slice).worst, 0, 1e-9);
    assert_int_equal(left_out_errors(points, LeftOut::tokens).points, 30);
    // A larger group, as the formula says.
    const Work work = work_of(Operation::pair, uniform_traffic(256, 8, 16, 512), 512, {row, row}, 2.0);
    near(fit.us(work), 4.0 + 6.5 + work.crossed * 1e-3 / 350 + work.local * 1e-3 / 2100, 1e-6);
}

void test_link_rate_bounds_the_fit(void **) {
    const Line line = line_of(6.5, 350, 2100);
    const auto points = made_points(counts, line, line, 0, 0);
    same_line(fit_points(points, "pair", 1e-3 / 400).many, line);  // a link that is faster than what was fitted changes nothing
    const Line bounded = fit_points(points, "pair", 1e-3 / 300).few;
    near(bounded.us_a_crossed_byte * 1e6, 1e3 / 300, 1e-9);
    assert_true(left_out_errors(points, LeftOut::slice, 1e-3 / 300).median > 1e-3);
}

void test_fit_two_lines(void **) {
    const Line few = line_of(7, 250, 900);
    const Line many = line_of(22, 360, 0);
    const auto points = made_points(counts, few, many, 64, 0);
    const Fit fit = fit_points(points, "pair");
    assert_int_equal(fit.most_few, 64);
    same_line(fit.few, few);
    same_line(fit.many, many);
    assert_true(&fit.line(64) == &fit.few && &fit.line(65) == &fit.many);
}

void test_fit_is_never_negative(void **) {
    // Times that fall with local work: the unknown is 0, and the others are the best without it.
    auto points = made_points(counts, line_of(5, 300, 0), line_of(5, 300, 0), 0, 0);
    for (Point &point : points) {
        point.us *= 1 - 1e-10 * point.work.local;
    }
    const Fit fit = fit_points(points, "pair");
    for (const Line &line : {fit.few, fit.many}) {
        assert_true(line.t0_us >= 0 && line.us_a_crossed_byte >= 0 && line.us_a_local_byte == 0);
    }
    assert_true(errors_of(fit, points).median < 0.02);
}

void test_whole_pairs_alone(void **) {
    // Without slices, local work is as good as proportional to the bytes that cross: one rate holds both.
    const Line line = line_of(6, 350, 2000);
    std::vector<Point> points;
    for (const Point &point : made_points(counts, line, line, 0, 0)) {
        if (point.slice_of == 0) {
            points.push_back(point);
        }
    }
    const Fit fit = fit_points(points, "pair");
    assert_false(fit.many.splits_local);
    assert_true(fit.many.us_a_local_byte == 0);
    const Work &work = points.back().work;
    near(fit.many.us_a_crossed_byte, line.us_a_crossed_byte + line.us_a_local_byte * work.local / work.crossed, 1e-3);
    assert_int_equal(left_out_errors(points, LeftOut::slice).points, 0);
}

void test_left_out_points_have_no_part(void **) {
    const Line line = line_of(6, 350, 2000);
    auto points = made_points(counts, line, line, 0, 0);
    for (Point &point : points) {
        point.us *= point.work.tokens == 256 ? 1.25 : 1;
    }
    const Errors left_out = left_out_errors(points, LeftOut::tokens);
    near(left_out.worst, 1 / 1.25 - 1, 1e-9);  // predicted from the exact points alone
    assert_int_equal(left_out.worst_tokens, 256);
    assert_true(std::abs(errors_of(fit_points(points, "pair"), points).worst) < 0.199);  // in the fit it pulls the line
    for (Point &point : points) {
        point.us *= point.slice_of == 8 && point.work.tokens == 4096 ? 2 : 1;
    }
    const Errors slices = left_out_errors(points, LeftOut::slice);
    assert_int_equal(slices.worst_slice, 8);
    assert_int_equal(slices.worst_tokens, 4096);
}

void refuses(const std::vector<Point> &points, const std::string &part) {
    try {
        fit_points(points, "combine on two ranks");
        fail_msg("no refusal; must say \"%s\"", part.c_str());
    } catch (const std::invalid_argument &error) {
        if (std::string(error.what()).find(part) == std::string::npos) {
            fail_msg("\"%s\" does not say \"%s\"", error.what(), part.c_str());
        }
    }
}

void test_refusals(void **) {
    const Line line = line_of(6, 350, 2000);
    auto points = made_points(counts, line, line, 0, 0);
    refuses({points.begin(), points.begin() + 3}, "combine on two ranks: 3 measured points with 3 different numbers of tokens are too few");
    refuses(std::vector<Point>(5, points[3]), "5 measured points with 1 different numbers");
    refuses({}, "at least 4 points");
    points[2].us = 0;
    refuses(points, "a measured time is 0 us");
    points[2].us = NAN;
    refuses(points, "a measured time is nan us");
}

void test_work(void **) {
    const Traffic traffic{30, 10, 35};
    const Work dispatch = work_of(Operation::dispatch, traffic, 20, {100, 200}, 1.5);
    const Work combine = work_of(Operation::combine, traffic, 20, {100, 200}, 1.5);
    const Work pair = work_of(Operation::pair, traffic, 20, {100, 200}, 1.5);
    assert_true(dispatch.crossed == 3000 && dispatch.local == 3000 && dispatch.sync_us == 1.5 && dispatch.tokens == 20);
    assert_true(combine.crossed == 6000 && combine.local == 11000 && combine.sync_us == 1.5);
    assert_true(pair.crossed == 9000 && pair.local == 14000 && pair.sync_us == 3.0 && pair.tokens == 20);
}

class File {
public:
    explicit File(const std::string &text) {
        path_ = "/tmp/test_model.XXXXXX";
        const int descriptor = mkstemp(path_.data());
        assert_true(descriptor >= 0);
        close(descriptor);
        std::ofstream(path_) << text;
    }
    ~File() { unlink(path_.c_str()); }
    const std::string &path() const { return path_; }

private:
    std::string path_;
};

void test_sync(void **) {
    near(Sync().us(72), 0, 0);
    assert_false(Sync().known());
    const File file(R"({"cuda": {"figures": [{"what": "a rate", "value": 350, "unit": "GB/s"}, {"value": 1.0, "flags": 1}, )"
                    R"({"value": 1.6, "flags": 31}, {"value": 1.1, "flags": 7}]}})");
    const Sync sync(file.path());
    assert_true(sync.known());
    near(sync.us(2), 1.0, 1e-12);
    near(sync.us(5), 1.05, 1e-12);
    near(sync.us(8), 1.1, 1e-12);
    near(sync.us(20), 1.35, 1e-12);
    near(sync.us(32), 1.6, 1e-12);
    near(sync.us(44), 1.85, 1e-12);  // beyond the last figure
    for (const char *text : {"{}", "{\"cuda\": {\"figures\": [{\"value\": 1.0, \"flags\": 1}]}}", "no JSON"}) {
        const File bad(text);
        try {
            Sync refused(bad.path());
            fail_msg("took %s", text);
        } catch (const std::invalid_argument &error) {
            assert_non_null(std::strstr(error.what(), "--link /tmp/test_model."));
        }
    }
}

}  // namespace

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uniform_rows),      cmocka_unit_test(test_counted_rows),
        cmocka_unit_test(test_slices),            cmocka_unit_test(test_fit_one_line),
        cmocka_unit_test(test_fit_two_lines),     cmocka_unit_test(test_fit_is_never_negative),
        cmocka_unit_test(test_whole_pairs_alone), cmocka_unit_test(test_left_out_points_have_no_part),
        cmocka_unit_test(test_refusals),          cmocka_unit_test(test_work),
        cmocka_unit_test(test_sync),              cmocka_unit_test(test_link_rate_bounds_the_fit),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
