#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <moelink/moe.h>

namespace perf {

namespace {

int32_t layout_of(const std::string &name) {
    int32_t layout = MOELINK_LAYOUT_RANK_MAJOR;
    while (name != moelink_layout_name(layout)) {
        if (++layout > MOELINK_LAYOUT_EXPERT_PADDED) {
            throw std::invalid_argument(fmt::format("unknown layout \"{}\"", name));
        }
    }
    return layout;
}

}  // namespace

World::World(const PairOptions &options, const Routing &routing, int64_t most_tokens)
    : seed(options.seed),
      dtype(dtype_of(options.dtype)),
      send(send_of(options.send)),
      ranks(options.ranks),
      hidden(options.hidden),
      topk(options.topk),
      experts(options.experts),
      weighted(options.weighted),
      layout(layout_of(options.layout)) {
    for (int rank = 0; rank < ranks; ++rank) {
        // Uneven: the last rank has all, the first none.
        tokens.push_back(options.uneven && ranks > 1 ? most_tokens * rank / (ranks - 1) : most_tokens);
        ids.push_back(route(routing, options, rank, tokens.back()));
        weights.push_back(draw_weights(options, rank, tokens.back()));
    }
}

bool World::by_expert() const {
    return layout == MOELINK_LAYOUT_EXPERT_MAJOR || layout == MOELINK_LAYOUT_EXPERT_PADDED;
}

int World::experts_there(int source, int64_t token, int to) const {
    const int32_t *row = ids[static_cast<size_t>(source)].data() + token * topk;
    const int first = first_expert(to, experts, ranks);
    const int last = first_expert(to + 1, experts, ranks);
    return static_cast<int>(std::count_if(row, row + topk, [&](int32_t id) { return id >= first && id < last; }));
}

float World::factor(int source, int64_t token, int owner) const {
    if (!weighted) {
        return 1;
    }
    float sum = 0;
    for (int k = 0; k < topk; ++k) {
        const auto at = static_cast<size_t>(token * topk + k);
        const int32_t id = ids[static_cast<size_t>(source)][at];
        if (id >= 0 && id < experts && owner_of(id, experts, ranks) == owner) {
            sum += weights[static_cast<size_t>(source)][at];
        }
    }
    return sum;
}

int World::distinct_ranks(int source, int64_t token) const {
    int distinct = 0;
    for (int to = 0; to < ranks; ++to) {
        distinct += sends(source, token, to);
    }
    return distinct;
}

int64_t World::rows_between(int source, int to) const {
    int64_t rows = 0;
    for (int64_t t = 0; t < tokens[static_cast<size_t>(source)]; ++t) {
        rows += sends(source, t, to);
    }
    return rows;
}

int64_t World::most_tokens() const {
    return *std::max_element(tokens.begin(), tokens.end());
}

namespace {

// `times` a row, added one by one and rounded once.
std::vector<char> repeated(const World &world, int times, const void *row) {
    const auto hidden = static_cast<size_t>(world.hidden);
    std::vector<float> x(hidden);
    std::vector<float> sum(hidden);
    to_floats(world.dtype, row, world.hidden, x.data());
    for (int r = 0; r < times; ++r) {
        for (size_t c = 0; c < hidden; ++c) {
            sum[c] += x[c];
        }
    }
    std::vector<char> result(hidden * static_cast<size_t>(world.dtype.bytes));
    from_floats(world.dtype, sum.data(), world.hidden, result.data());
    return result;
}

// One pair without expert work: the rows of the token's distinct ranks, each the token or by_expert as many as it has experts there.
void sum_row(const World &world, int source, int64_t token, void *row) {
    if (!world.by_expert()) {
        const auto sum = repeated(world, world.distinct_ranks(source, token), row);
        std::memcpy(row, sum.data(), sum.size());
        return;
    }
    const auto hidden = static_cast<size_t>(world.hidden);
    std::vector<float> x(hidden);
    std::vector<float> sum(hidden);
    for (int to = 0; to < world.ranks; ++to) {
        const int experts = world.experts_there(source, token, to);
        if (experts == 0) {
            continue;
        }
        to_floats(world.dtype, repeated(world, experts, row).data(), world.hidden, x.data());
        for (size_t c = 0; c < hidden; ++c) {
            sum[c] += x[c];
        }
    }
    from_floats(world.dtype, sum.data(), world.hidden, row);
}

}  // namespace

void given_row(const World &world, const Given &given, int source, int64_t token, void *row) {
    fill_row(world.dtype, world.seed + static_cast<uint64_t>(given.input), source, token, world.hidden, row);
    if (given.summed) {
        sum_row(world, source, token, row);
    }
}

void CheckResult::add(bool right, const std::string &what_if_wrong) {
    ++compared;
    if (!right && wrong++ == 0) {
        first = what_if_wrong;
    }
}

void CheckResult::merge(const CheckResult &other) {
    compared += other.compared;
    if (wrong == 0) {
        first = other.first;
    }
    wrong += other.wrong;
}

namespace {

// Compares the ids of one received row; row_of NULL: an empty row, all invalid.
void check_ids(const World &world, int rank, int source, int64_t slot, int64_t token, const Received &received,
               CheckResult &result) {
    const int first = first_expert(rank, world.experts, world.ranks);
    const int last = first_expert(rank + 1, world.experts, world.ranks);
    const int64_t row = source * received.slots + slot;
    for (int k = 0; k < world.topk; ++k) {
        int32_t expected = received.invalid_id;
        if (token >= 0) {
            const int32_t id = world.ids[static_cast<size_t>(source)][static_cast<size_t>(token * world.topk + k)];
            expected = id >= first && id < last ? id : received.invalid_id;
        }
        const int32_t got = received.ids[static_cast<size_t>(row * world.topk + k)];
        ++result.compared;
        if (got != expected && result.wrong++ == 0) {
            result.first = fmt::format("expert id {} of row {} from rank {} ({}) is {}, must be {}", k, slot, source,
                                       token >= 0 ? fmt::format("its token {}", token) : "an empty row", got, expected);
        }
    }
}

void check_row(const World &world, const Given &given, int source, int64_t slot, int64_t token, const Received &received,
               CheckResult &result) {
    const size_t bytes = sent_bytes(world.send, world.dtype, world.hidden);
    std::vector<char> row(static_cast<size_t>(world.hidden) * static_cast<size_t>(world.dtype.bytes));
    std::vector<char> expected(bytes);
    given_row(world, given, source, token, row.data());
    send_row(world.send, world.dtype, row.data(), world.hidden, expected.data());
    const char *got = received.rows[static_cast<size_t>(source)].data() + static_cast<size_t>(slot) * bytes;
    result.compared += static_cast<uint64_t>(world.hidden);
    if (std::memcmp(got, expected.data(), bytes) == 0) {
        return;
    }
    const size_t width = world.send.fp8 ? 1 : static_cast<size_t>(world.dtype.bytes);
    const auto columns = static_cast<size_t>(world.hidden);
    std::vector<float> values(columns);
    std::vector<float> must(columns);
    read_sent(world.send, world.dtype, got, world.hidden, values.data());
    read_sent(world.send, world.dtype, expected.data(), world.hidden, must.data());
    const uint64_t before = result.wrong;
    for (size_t c = 0; c < columns; ++c) {
        if (std::memcmp(got + c * width, expected.data() + c * width, width) != 0 && result.wrong++ == 0) {
            result.first = fmt::format("column {} of row {} from rank {} (its token {}) is {}, must be {}", c, slot, source, token,
                                       values[c], must[c]);
        }
    }
    if (result.wrong == before && result.wrong++ == 0) {
        result.first = fmt::format("scales of row {} from rank {} (its token {}) are not those of its values", slot, source, token);
    }
}

}  // namespace

CheckResult check_dispatch(const World &world, int rank, bool gathers_all, const Given &given, const Received &received) {
    CheckResult result;
    for (int source = 0; source < world.ranks; ++source) {
        int64_t slot = 0;
        const int64_t count = received.counts[static_cast<size_t>(source)];
        for (int64_t token = 0; token < world.tokens[static_cast<size_t>(source)]; ++token) {
            if (!gathers_all && !world.sends(source, token, rank)) {
                continue;
            }
            if (slot < count) {
                check_row(world, given, source, slot, token, received, result);
                check_ids(world, rank, source, slot, token, received, result);
                for (int k = 0; k < world.topk; ++k) {
                    const float got = received.weights[static_cast<size_t>((source * received.slots + slot) * world.topk + k)];
                    const float must = world.weights[static_cast<size_t>(source)][static_cast<size_t>(token * world.topk + k)];
                    ++result.compared;
                    if (std::memcmp(&got, &must, sizeof got) != 0 && result.wrong++ == 0) {
                        result.first = fmt::format("weight {} of row {} from rank {} (its token {}) is {}, must be {}", k, slot,
                                                   source, token, got, must);
                    }
                }
            }
            ++slot;
        }
        if (count != slot) {
            result.add(false, fmt::format("{} rows are said to have come from rank {}, must be {}", count, source, slot));
        } else {
            result.add(true, "");
        }
        for (; slot < received.slots; ++slot) {
            check_ids(world, rank, source, slot, -1, received, result);
        }
    }
    return result;
}

CheckResult check_combine(const World &world, int rank, int extra_roundings, const std::vector<char> &output) {
    CheckResult result;
    const auto hidden = static_cast<size_t>(world.hidden);
    const size_t bytes = hidden * static_cast<size_t>(world.dtype.bytes);
    const double u = world.dtype.round;
    const double adds = (world.topk + world.ranks + 4) * 0x1p-24;
    std::vector<char> row(bytes);
    std::vector<char> sent(sent_bytes(world.send, world.dtype, world.hidden));
    std::vector<float> x(hidden);
    std::vector<float> got(hidden);
    std::vector<double> sum(hidden);
    std::vector<double> part(hidden);
    std::vector<double> parts(hidden);  // sum over ranks of |part|
    std::vector<double> terms(hidden);  // sum over experts of the magnitudes that were added
    for (int64_t token = 0; token < world.tokens[static_cast<size_t>(rank)]; ++token) {
        fill_row(world.dtype, world.seed, rank, token, world.hidden, row.data());
        send_row(world.send, world.dtype, row.data(), world.hidden, sent.data());
        read_sent(world.send, world.dtype, sent.data(), world.hidden, x.data());
        to_floats(world.dtype, output.data() + static_cast<size_t>(token) * bytes, world.hidden, got.data());
        for (auto *values : {&sum, &parts, &terms}) {
            std::fill(values->begin(), values->end(), 0.0);
        }
        const int32_t *ids = world.ids[static_cast<size_t>(rank)].data() + token * world.topk;
        const float *weights = world.weights[static_cast<size_t>(rank)].data() + token * world.topk;
        int distinct = 0;
        for (int owner = 0; owner < world.ranks; ++owner) {
            if (!world.sends(rank, token, owner)) {
                continue;
            }
            ++distinct;
            const double factor = world.factor(rank, token, owner);
            std::fill(part.begin(), part.end(), 0.0);
            for (int k = 0; k < world.topk; ++k) {
                if (ids[k] < 0 || ids[k] >= world.experts || owner_of(ids[k], world.experts, world.ranks) != owner) {
                    continue;
                }
                const ExpertMap map = expert_map(ids[k]);
                const double scale = static_cast<double>(weights[k]) * map.scale;
                const double bias[2] = {-static_cast<double>(weights[k]) * map.bias, static_cast<double>(weights[k]) * map.bias};
                for (size_t c = 0; c < hidden; ++c) {
                    const double scaled = scale * x[c];
                    part[c] += scaled + bias[(map.signs >> (c & 63)) & 1];
                    terms[c] += factor * (std::abs(scaled) + bias[1]);
                }
            }
            for (size_t c = 0; c < hidden; ++c) {
                sum[c] += factor * part[c];
                parts[c] += factor * std::abs(part[c]);
            }
        }
        const double roundings = 1 + extra_roundings;
        result.compared += hidden;
        for (size_t c = 0; c < hidden; ++c) {
            const double allowed = u * std::abs(sum[c]) + roundings * u * parts[c] + adds * terms[c] +
                                   (distinct + roundings) * world.dtype.underflow;
            if (!(std::abs(got[c] - sum[c]) <= allowed) && result.wrong++ == 0) {  // a NaN is wrong too
                result.first =
                    fmt::format("column {} of token {} is {}, must be {} within {}", c, token, got[c], sum[c], allowed);
            }
        }
    }
    return result;
}

CheckResult check_chain(const World &world, int rank, int steps, bool any_order, const std::vector<char> &output) {
    CheckResult result;
    const auto hidden = static_cast<size_t>(world.hidden);
    const size_t bytes = hidden * static_cast<size_t>(world.dtype.bytes);
    std::vector<char> row(bytes);
    std::vector<float> x(hidden);
    std::vector<float> got(hidden);
    for (int64_t token = 0; token < world.tokens[static_cast<size_t>(rank)]; ++token) {
        const int distinct = world.distinct_ranks(rank, token);
        fill_row(world.dtype, world.seed, rank, token, world.hidden, row.data());
        to_floats(world.dtype, row.data(), world.hidden, x.data());
        to_floats(world.dtype, output.data() + static_cast<size_t>(token) * bytes, world.hidden, got.data());
        result.compared += hidden;
        if (world.weighted) {
            double total = 0;
            for (int owner = 0; owner < world.ranks; ++owner) {
                total += world.sends(rank, token, owner) ? world.factor(rank, token, owner) : 0;
            }
            const double slack = steps * (2 * world.dtype.round + world.ranks * 0x1p-23);
            for (size_t c = 0; c < hidden; ++c) {
                const double must = x[c] * std::pow(total, steps);
                const bool right = std::abs(got[c] - must) <= slack * std::abs(must) + steps * world.dtype.underflow;
                if (!right && result.wrong++ == 0) {
                    result.first = fmt::format("column {} of token {} is {} after {} timed weighted pairs, must be about {}", c,
                                               token, got[c], steps, must);
                }
            }
            continue;
        }
        if (any_order) {
            const double slack = steps * world.ranks * 2 * world.dtype.round;
            for (size_t c = 0; c < hidden; ++c) {
                const double few = x[c] * std::pow(distinct, steps);
                const double all = x[c] * std::pow(world.ranks, steps);
                const bool right =
                    std::abs(got[c] - few) <= slack * std::abs(few) || std::abs(got[c] - all) <= slack * std::abs(all);
                if (!right && result.wrong++ == 0) {
                    result.first = fmt::format("column {} of token {} is {} after {} timed pairs, must be about {}", c, token,
                                               got[c], steps, few);
                }
            }
            continue;
        }
        for (int step = 0; step < steps; ++step) {
            sum_row(world, rank, token, row.data());
        }
        to_floats(world.dtype, row.data(), world.hidden, x.data());
        for (size_t c = 0; c < hidden; ++c) {
            if (got[c] != x[c] && result.wrong++ == 0) {
                result.first =
                    fmt::format("column {} of token {} is {} after {} timed pairs, must be {}", c, token, got[c], steps, x[c]);
            }
        }
    }
    return result;
}

}  // namespace perf
