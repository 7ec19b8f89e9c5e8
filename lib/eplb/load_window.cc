#include "eplb/load_window.hpp"

#include "base/params.hpp"
#include "group/agreement.hpp"
#include "moe/backend.hpp"

#include <algorithm>
#include <array>

namespace moelink::eplb {

namespace {

constexpr int32_t largest_window = 65536;
constexpr size_t exchange_counts = size_t{1} << 17;  // that one round of the group carries from each rank

// Where a model's parts begin, in int64 elements. The number of passes has a line of its own.
struct Parts {
    uint64_t logical, ranks, counts, end;

    Parts(const Shape &shape, int32_t window) {
        const uint64_t rows = static_cast<uint64_t>(window) * static_cast<uint64_t>(shape.layers);
        logical = 16;
        if (__builtin_mul_overflow(rows, static_cast<uint64_t>(shape.experts), &ranks) ||
            __builtin_mul_overflow(rows, static_cast<uint64_t>(shape.ranks), &counts) ||
            __builtin_add_overflow(ranks, logical, &ranks) || __builtin_add_overflow(counts, ranks, &counts) ||
            __builtin_add_overflow(counts, shape.all_slots(), &end) || end > UINT64_MAX / sizeof(int64_t)) {
            fail(MOELINK_ERR_OUT_OF_MEMORY, "a window of {} passes of {} layers with {} experts does not fit 64-bit sizes", window,
                 shape.layers, shape.experts);
        }
    }
};

uint64_t sums_of(const Shape &shape, int32_t steps) {
    return static_cast<uint64_t>(shape.layers) *
               (static_cast<uint64_t>(steps) * static_cast<uint64_t>(shape.experts) + static_cast<uint64_t>(shape.ranks)) +
           1;
}

}  // namespace

LoadWindow::LoadWindow(Ref<Group> group, int32_t window) : group_(std::move(group)), device_(*group_), window_(window) {
    check_window(window);
}

void LoadWindow::check_window(int32_t window) {
    if (window < 1 || window > largest_window) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "window is {}; it must be in 1 .. {} passes", window, largest_window);
    }
}

uint64_t LoadWindow::bytes(const Shape &shape, int32_t window) {
    check_window(window);
    return (Parts(shape, window).end + sums_of(shape, 1)) * sizeof(int64_t);
}

int32_t LoadWindow::add(Ref<DeviceMap> map) {
    const int ordinal = group_->on_cuda() ? group_->ordinal() : -1;
    if (map->ordinal() != ordinal) {
        auto name = [](int number) { return number < 0 ? std::string("the host") : fmt::format("CUDA device {}", number); };
        fail(MOELINK_ERR_INVALID_ARGUMENT, "the map is on {} and the window on {}", name(map->ordinal()), name(ordinal));
    }
    const Shape &shape = map->shape();
    Model model;
    model.memory = Buffer(device_, Parts(shape, window_).end * sizeof(int64_t));
    model.sums_bytes = sums_of(shape, 1) * sizeof(int64_t);
    model.sums = Buffer(device_, model.sums_bytes);
    model.map = std::move(map);
    models_.push_back(std::move(model));
    return static_cast<int32_t>(models_.size()) - 1;
}

LoadWindow::Model &LoadWindow::find(int32_t model) {
    if (model < 0 || static_cast<size_t>(model) >= models_.size()) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "model is {}; the window has {}", model, models_.size());
    }
    return models_[static_cast<size_t>(model)];
}

kernels::LoadRing LoadWindow::ring(const Model &model) const {
    const Parts parts(model.map->shape(), window_);
    auto *base = model.memory.as<int64_t>();
    return {model.map->table(),          model.map->shape().layers, window_,
            model.memory.as<uint64_t>(), base + parts.logical,     base + parts.ranks};
}

void LoadWindow::record(int32_t index, int64_t *counts, uint32_t flags, moelink_stream stream) {
    const Model &model = find(index);
    if (counts == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "counts is NULL");
    constexpr uint32_t known = MOELINK_EPLB_LOAD_F_CLEAR | MOELINK_EPLB_LOAD_F_HOST_COUNTS;
    if ((flags & ~known) != 0) fail(MOELINK_ERR_UNSUPPORTED, "flags has bits that this library does not know: {:#x}", flags & ~known);
    kernels::RecordParams params{};
    params.ring = ring(model);
    params.counts = counts;
    params.clear = (flags & MOELINK_EPLB_LOAD_F_CLEAR) != 0 ? 1 : 0;
    if (!device_.on_cuda()) return kernels::host::record_load(params);
    DeviceGuard guard(device_);
    if ((flags & MOELINK_EPLB_LOAD_F_HOST_COUNTS) != 0) {
        if (params.clear != 0) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "counts on the host cannot be cleared from a stream; clear them yourself");
        }
        if (device_.capturing(stream)) {
            fail(MOELINK_ERR_INVALID_STATE, "the stream is being captured; counts on the host cannot be recorded in a graph");
        }
        params.counts = model.memory.as<int64_t>() + Parts(model.map->shape(), window_).counts;
        device_.write_async(params.counts, counts, model.map->shape().all_slots() * sizeof(int64_t), stream);
    }
    check_launch(kernels::cuda::record_load(params, stream), "recording loads");
}

std::vector<int64_t> LoadWindow::add_up(Model &model, int32_t steps, moelink_stream stream) const {
    const Shape &shape = model.map->shape();
    check_size(steps, MOELINK_EPLB_MAX_STEPS, "steps");
    if (device_.capturing(stream)) fail(MOELINK_ERR_INVALID_STATE, "the stream is being captured; a window is read outside of graphs");
    std::vector<int64_t> sums(sums_of(shape, steps));
    const uint64_t bytes = sums.size() * sizeof(int64_t);
    if (bytes > model.sums_bytes) {
        model.sums = Buffer(device_, bytes);
        model.sums_bytes = bytes;
    }
    kernels::SumParams params{};
    params.ring = ring(model);
    params.steps = steps;
    params.out_logical = model.sums.as<int64_t>();
    params.out_ranks = params.out_logical + int64_t{steps} * shape.layers * shape.experts;
    params.out_passes = reinterpret_cast<uint64_t *>(params.out_ranks + int64_t{shape.layers} * shape.ranks);
    if (device_.on_cuda()) {
        DeviceGuard guard(device_);
        check_launch(kernels::cuda::sum_load(params, stream), "adding up loads");
        device_.synchronize(stream);
    } else {
        kernels::host::sum_load(params);
    }
    device_.read(sums.data(), model.sums.as(), bytes);
    return sums;
}

void LoadWindow::write_report(const Model &model, int32_t steps, const std::vector<int64_t> &sums, moelink_eplb_load_report *out) const {
    const Shape &shape = model.map->shape();
    const moelink_eplb_load_report defaults = MOELINK_EPLB_LOAD_REPORT_INIT;
    moelink_eplb_load_report report = read_params(out, defaults, "out");
    const int64_t experts = int64_t{steps} * shape.layers * shape.experts;
    const int64_t *rank_sums = sums.data() + experts;
    const int64_t ranks = int64_t{shape.layers} * shape.ranks;
    report.recorded = static_cast<uint64_t>(sums.back());
    report.passes = static_cast<int32_t>(std::min<uint64_t>(report.recorded, static_cast<uint64_t>(window_)));
    if (report.expert_load != nullptr) std::copy_n(sums.data(), experts, report.expert_load);
    if (report.rank_load != nullptr) std::copy_n(rank_sums, ranks, report.rank_load);
    report.balance = 0;
    double means = 0, largest = 0;
    for (int layer = 0; layer < shape.layers; ++layer) {
        double sum = 0, most = 0;
        for (int rank = 0; rank < shape.ranks; ++rank) {
            const auto load = static_cast<double>(rank_sums[int64_t{layer} * shape.ranks + rank]);
            sum += load;
            most = std::max(most, load);
        }
        const double mean = sum / shape.ranks;
        const double balance = most > 0 ? mean / most : 1;
        if (report.layer_balance != nullptr) report.layer_balance[layer] = balance;
        report.balance += balance / shape.layers;
        means += mean;
        largest += most;
    }
    report.balance_summed = largest > 0 ? means / largest : 1;
    write_output(out, report, "out");
}

void LoadWindow::read(int32_t index, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out) {
    Model &model = find(index);
    check_output(out, "out");
    write_report(model, steps, add_up(model, steps, stream), out);
}

void LoadWindow::reduce(int32_t index, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out) {
    const Deadline deadline = group_->deadline();
    std::vector<int64_t> sums;
    step(*group_, deadline, [&] {
        const moelink_eplb_load_report defaults = MOELINK_EPLB_LOAD_REPORT_INIT;
        read_params(out, defaults, "out");
        sums = add_up(find(index), steps, stream);
    });
    const Model &model = find(index);
    const Shape &shape = model.map->shape();
    const auto shapes = group_->allgather(std::array{index, steps, shape.layers, shape.experts, shape.slots, shape.ranks}, deadline);
    for (size_t rank = 1; rank < shapes.size(); ++rank) {
        static constexpr const char *names[] = {"model", "steps", "layers", "experts", "slots", "ranks of the map"};
        for (size_t i = 0; i < std::size(names); ++i) {
            if (shapes[rank][i] == shapes[0][i]) continue;
            throw Refusal(MOELINK_ERR_MISMATCH,
                          fmt::format("{}: rank 0 has {} and rank {} has {}", names[i], shapes[0][i], rank, shapes[rank][i]));
        }
    }
    // All but the number of passes, which is this rank's own.
    const size_t count = sums.size() - 1;
    const auto ranks = static_cast<size_t>(group_->size());
    std::vector<int64_t> all(std::min(count, exchange_counts) * ranks);
    for (size_t first = 0; first < count; first += exchange_counts) {
        const size_t part = std::min(count - first, exchange_counts);
        group_->allgather(sums.data() + first, all.data(), part * sizeof(int64_t), deadline);
        for (size_t i = 0; i < part; ++i) {
            int64_t sum = 0;
            for (size_t rank = 0; rank < ranks; ++rank) sum = kernels::add_counts(sum, all[rank * part + i]);
            sums[first + i] = sum;
        }
    }
    write_report(model, steps, sums, out);
}

void LoadWindow::clear(int32_t index, moelink_stream stream) {
    const Model &model = find(index);
    device_.clear_async(model.memory.as(), sizeof(uint64_t), stream);
}

}  // namespace moelink::eplb
