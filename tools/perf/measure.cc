#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

namespace perf {

namespace {

constexpr double pair_budget_us = 1e6;  // what one measurement may take when the user names no number of iterations
constexpr double op_budget_us = 0.5e6;
constexpr double replay_budget_us = 1e5;
constexpr double memcpy_budget_us = 2e4;
constexpr int least_iterations = 5;
constexpr int most_iterations = 200;
constexpr int default_pairs = 20;
constexpr int most_stamped = 1000;  // pairs of a replay that is stamped

Timing timing_of(std::vector<double> samples) {
    Timing timing;
    if (samples.empty()) {
        return timing;
    }
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double share) {  // nearest rank
        const auto place = static_cast<size_t>(std::ceil(share * static_cast<double>(samples.size())));
        return samples[std::max<size_t>(place, 1) - 1];
    };
    timing = {at(0.5), at(0.99), samples.front(), samples.back(), static_cast<int>(samples.size())};
    return timing;
}

// A chain starts from the tokens again before its values could overflow: each pair multiplies a token by its distinct ranks, or experts.
int restart_after(const World &world) {
    const double octaves_a_pair = std::log2(world.by_expert() ? world.topk : std::min(world.ranks, world.topk));
    return octaves_a_pair > 0 ? std::max(1, static_cast<int>(world.dtype.octaves / octaves_a_pair)) : 1 << 20;
}

// Pairs in a row, each reading what the one before it wrote; with stamps, mark i is before pair i. Returns the output that the last
// one wrote.
int run_chain(Job &job, int pairs, int restart, bool stamps = false) {
    for (int i = 0; i < pairs; ++i) {
        if (stamps) {
            job.session().device().mark(i);
        }
        job.dispatch(job.chain_input(i, restart));
        job.combine_received(job.output(i % 2));
    }
    if (stamps) {
        job.session().device().mark(pairs);
    }
    return (pairs + 1) % 2;
}

// The number that rank 0 found, on every rank.
int agree(const Session &session, int number) {
    must(moelink_group_broadcast(session.group(), &number, sizeof number, 0), "moelink_group_broadcast");
    return number;
}

double pair_estimate_us(Job &job) {
    const Session &session = job.session();
    Device &device = session.device();
    double least = 0;
    for (int i = 0; i < 3; ++i) {
        session.barrier();
        const auto start = std::chrono::steady_clock::now();
        run_chain(job, 1, 1);
        device.sync();
        const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
        least = i == 0 ? us : std::min(least, us);
    }
    return std::max(least, 1.0);
}

int iterations_for(const Session &session, double budget_us, double one_us) {
    const int wanted = session.options().iterations;
    const int fitting = static_cast<int>(std::clamp(budget_us / one_us, double{least_iterations}, double{most_iterations}));
    return agree(session, wanted > 0 ? wanted : fitting);
}

// Goes on after `pairs` pairs of a chain: what one more dispatch delivers, from what the last combine wrote.
CheckResult check_next_dispatch(Job &job, int pairs, int restart) {
    job.poison_received();
    job.dispatch(job.chain_input(pairs, restart));
    const CheckResult result =
        check_dispatch(job.world(), job.session().rank(), job.gathers_all(), job.chain_given(pairs, restart), job.received());
    job.combine_received(job.output(pairs % 2));
    job.session().device().sync();
    return result;
}

// Many pairs, no host synchronisation between them; each sample is one stretch (or graph replay) divided by its pairs.
void time_pairs(Job &job, double estimate_us, Measured &measured) {
    const Session &session = job.session();
    Device &device = session.device();
    const PairOptions &options = session.options();
    int pairs = options.pairs;
    if (pairs == 0) {
        pairs = session.on_cuda() && !job.blocks()
                    ? default_pairs
                    : static_cast<int>(std::clamp(replay_budget_us / estimate_us, 1.0, double{default_pairs}));
    }
    pairs = agree(session, pairs);
    const int iterations = iterations_for(session, pair_budget_us, estimate_us * pairs);
    const int restart = restart_after(job.world());
    int graph = -1;
    if (measured.graph) {
        device.begin_capture();
        run_chain(job, pairs, restart);
        graph = device.end_capture();
    }
    const auto stretch = [&] {
        if (graph >= 0) {
            device.launch(graph);
        } else {
            run_chain(job, pairs, restart);
        }
    };
    device.reserve_marks(iterations + 1);
    session.barrier();
    for (int i = 0; i < options.warmup; ++i) {
        stretch();
        device.sync();
    }
    // Whatever is found in the outputs afterwards was written by the timed calls.
    device.fill(job.output(0), 0xff, job.output_bytes());
    device.fill(job.output(1), 0xff, job.output_bytes());
    device.sync();
    session.align();
    device.mark(0);
    for (int i = 0; i < iterations; ++i) {
        stretch();
        device.mark(i + 1);
        if (session.shares_gpu()) {
            device.sync();  // a full queue of one rank could keep another from launching what it waits for
        }
    }
    device.sync();
    std::vector<double> samples;
    for (int i = 0; i < iterations; ++i) {
        samples.push_back(device.between_us(i, i + 1) / pairs);
    }
    measured.pair = timing_of(session.slowest(samples));
    measured.pairs = pairs;
    const int last = (pairs + 1) % 2;
    // Where combine has rows of its own, each pair gives what one pair gives.
    const int steps = job.world().send.fp8 ? 1 : (pairs - 1) % restart + 1;
    measured.chain = check_chain(job.world(), session.rank(), steps, job.own_rounding(), job.output_on_host(last));
    if (job.world().send.fp8) {
        measured.chain.merge(check_next_dispatch(job, pairs, restart));
    }
}

// Each operation alone: all ranks idle, then started together.
void time_operations(Job &job, double estimate_us, Measured &measured) {
    const Session &session = job.session();
    Device &device = session.device();
    const int iterations = iterations_for(session, op_budget_us, estimate_us);
    enum { dispatch_start, dispatch_end, combine_start, combine_end, marks };
    device.reserve_marks(marks);
    const auto round = [&] {
        session.align();
        device.mark(dispatch_start);
        job.dispatch(job.tokens());
        device.mark(dispatch_end);
        session.align();
        device.mark(combine_start);
        job.combine_received(job.output(0));
        device.mark(combine_end);
    };
    int graph = -1;
    if (measured.graph && session.start_note().empty()) {
        device.begin_capture();
        round();
        graph = device.end_capture();
    }
    std::vector<double> dispatches;
    std::vector<double> combines;
    for (int i = -session.options().warmup; i < iterations; ++i) {
        session.barrier();
        if (graph >= 0) {
            device.launch(graph);
        } else {
            round();
        }
        device.sync();
        if (i >= 0) {
            dispatches.push_back(device.between_us(dispatch_start, dispatch_end));
            combines.push_back(device.between_us(combine_start, combine_end));
        }
    }
    measured.dispatch = timing_of(session.slowest(dispatches));
    measured.combine = timing_of(session.slowest(combines));
}

// Each pair of a long row: one graph on CUDA, eager calls elsewhere.
void stamp_pairs(Job &job, double estimate_us, Measured &measured) {
    const Session &session = job.session();
    Device &device = session.device();
    const int fitting = static_cast<int>(std::clamp(op_budget_us / estimate_us, 2.0 * least_iterations, double{most_stamped}));
    // Several ranks on one GPU share its queues, which a long row of eager calls would fill.
    const bool long_row = measured.graph || !session.on_cuda();
    const int pairs = long_row ? agree(session, session.on_cuda() ? most_stamped : fitting) : default_pairs;
    const int restart = restart_after(job.world());
    device.reserve_marks(pairs + 1);
    const bool starts_on_device = session.start_note().empty();
    const auto row = [&] {
        if (starts_on_device) {
            session.align();  // the first pair is like the others
        }
        run_chain(job, pairs, restart, true);
    };
    int graph = -1;
    if (measured.graph) {
        device.begin_capture();
        row();
        graph = device.end_capture();
    }
    std::vector<double> samples;
    constexpr int replays = 3;
    for (int replay = 0; replay < replays; ++replay) {
        session.barrier();
        if (graph >= 0) {
            device.launch(graph);
        } else {
            row();
        }
        device.sync();
        for (int i = 0; i < pairs && replay > 0; ++i) {  // the first replay warms up
            samples.push_back(device.between_us(i, i + 1));
        }
    }
    measured.stamped = timing_of(session.slowest(samples));
}

CallTime launched_by(const std::vector<Launch> &launches) {
    CallTime call;
    for (const Launch &launch : launches) {
        call.blocks = std::max(call.blocks, launch.blocks);
        call.parameter_bytes = std::max(call.parameter_bytes, launch.parameter_bytes);
        call.kernels += 1;
    }
    return call;
}

// The kernels that one dispatch and one combine launch; nothing runs.
void inspect_calls(Job &job, Measured &measured) {
    Device &device = job.session().device();
    device.begin_capture();
    job.dispatch(job.tokens());
    measured.dispatch_call = launched_by(device.inspect_capture());
    device.begin_capture();
    job.combine_received(job.output(0));
    measured.combine_call = launched_by(device.inspect_capture());
    measured.launches = true;
}

// The host's time in eager calls, with bare launches in between, so that both meet the same queue and the same clock.
void time_calls(Job &job, Measured &measured) {
    const Session &session = job.session();
    Device &device = session.device();
    enum { dispatch, bare_dispatch, combine, bare_combine, kinds };
    std::vector<double> samples[kinds];
    constexpr int rounds = 21;
    constexpr int calls = 20;
    const auto timed = [&](int kind, bool counts, auto work) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
        if (counts) {
            samples[kind].push_back(us);
        }
    };
    for (int round = 0; round < rounds; ++round) {
        session.barrier();
        const bool counts = round > 0;
        for (int i = 0; i < calls; ++i) {
            timed(dispatch, counts, [&] { job.dispatch(job.tokens()); });
            timed(bare_dispatch, counts, [&] { device.bare_launch(measured.dispatch_call.parameter_bytes); });
            timed(combine, counts, [&] { job.combine_received(job.output(0)); });
            timed(bare_combine, counts, [&] { device.bare_launch(measured.combine_call.parameter_bytes); });
            if (session.shares_gpu()) {
                device.sync();
            }
        }
        device.sync();
    }
    std::vector<double> p50;
    for (auto &of_kind : samples) {
        p50.push_back(timing_of(of_kind).p50);
    }
    p50 = session.slowest(p50);
    measured.dispatch_call.call_us = p50[dispatch];
    measured.dispatch_call.bare_us = p50[bare_dispatch];
    measured.combine_call.call_us = p50[combine];
    measured.combine_call.bare_us = p50[bare_combine];
}

// The yardstick of a pair on the host: as many bytes as must be read and written at least, by one memcpy. A dispatch reads a row
// once and writes it once for each distinct rank, in its form as sent; a combine reads those rows once and writes one. A memcpy
// of n bytes reads and writes n.
// Pairs and copies take turns on all ranks, so that what else runs on the machine hits both alike.
void time_memcpy(Job &job, double estimate_us, Measured &measured) {
    const Session &session = job.session();
    const World &world = job.world();
    const int64_t tokens = world.tokens[static_cast<size_t>(session.rank())];
    int64_t rows = 0;
    for (int peer = 0; peer < world.ranks; ++peer) {
        rows += world.rows_between(session.rank(), peer);
    }
    const uint64_t row_bytes = static_cast<uint64_t>(world.hidden) * static_cast<uint64_t>(world.dtype.bytes);
    const uint64_t sent = sent_bytes(world.send, world.dtype, world.hidden);
    const uint64_t given = world.send.inside ? row_bytes : sent;
    const size_t bytes = (static_cast<uint64_t>(tokens) * (given + row_bytes) + static_cast<uint64_t>(rows) * (sent + row_bytes)) / 2;
    std::vector<char> from(bytes, 1);
    std::vector<char> to(bytes, 2);
    const auto timed_us = [&](int times, auto work) {
        session.align();
        const auto start = std::chrono::steady_clock::now();
        work(times);
        return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / times;
    };
    const auto copy = [&](int times) {
        for (int i = 0; i < times; ++i) {
            if (bytes > 0) std::memcpy(to.data(), from.data(), bytes);  // a rank may have no rows at all
            asm volatile("" ::"r"(to.data()) : "memory");  // or the compiler would make one copy of many
        }
    };
    const int restart = restart_after(world);
    const auto pair = [&](int times) { run_chain(job, times, restart); };
    const auto fitting = [&](double one_us, double most) {
        return agree(session, static_cast<int>(std::clamp(memcpy_budget_us / std::max(one_us, 0.01), 1.0, most)));
    };
    const int copies = fitting(session.slowest({timed_us(2, copy)})[0], 1e6);  // a rank without rows would have all make a million
    const int pairs = fitting(estimate_us, 1e3);
    std::vector<double> pair_us;
    std::vector<double> copy_us;
    constexpr int rounds = 11;
    for (int i = 0; i < rounds; ++i) {
        pair_us.push_back(timed_us(pairs, pair));
        copy_us.push_back(timed_us(copies, copy));
    }
    pair_us = session.slowest(pair_us);
    copy_us = session.slowest(copy_us);
    std::vector<double> ratios;
    for (size_t i = 0; i < pair_us.size(); ++i) {
        ratios.push_back(pair_us[i] / copy_us[i]);
    }
    measured.memcpy_us = timing_of(copy_us).p50;
    measured.over_memcpy = timing_of(ratios).p50;
}

}  // namespace

Measured measure_baseline(Job &job) {
    const Session &session = job.session();
    Measured measured;
    measured.graph = session.options().graph && session.device().graphs() && !job.blocks();
    time_pairs(job, pair_estimate_us(job), measured);
    return measured;
}

Measured measure(Job &job, Channel &channel, const std::string &name) {
    const Session &session = job.session();
    Measured measured;
    measured.graph = session.options().graph && session.device().graphs() && !job.blocks();
    const double estimate_us = pair_estimate_us(job);
    channel.send({{"at", name + ": timing pairs"}});
    time_pairs(job, estimate_us, measured);
    channel.send({{"at", name + ": timing dispatch and combine"}});
    time_operations(job, estimate_us, measured);
    if (session.options().jitter) {
        channel.send({{"at", name + ": stamping pairs"}});
        stamp_pairs(job, estimate_us, measured);
    }
    if (session.on_cuda() && !job.blocks() && !job.own_rounding()) {
        inspect_calls(job, measured);
        if (session.options().call_time) {
            channel.send({{"at", name + ": timing calls"}});
            time_calls(job, measured);
        }
    }
    if (!session.on_cuda()) {
        time_memcpy(job, estimate_us, measured);
    }
    return measured;
}

}  // namespace perf
