#include "session.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace perf {

ManagerChoice manager_of(const std::string &name) {
    static const std::vector<std::pair<std::string, ManagerChoice>> managers = [] {
        std::vector<std::pair<std::string, ManagerChoice>> found;
        for (const int32_t kind : {MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_TWO_SIDED, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_REFERENCE}) {
            const std::string kind_name = moelink_manager_kind_name(kind);
            found.push_back({kind_name, {kind, 0}});
            if (kind != MOELINK_MANAGER_ALLGATHER_REDUCESCATTER) continue;
            found.push_back({kind_name + "-nccl", {kind, MOELINK_MANAGER_F_NCCL}});
            found.push_back({kind_name + "-nccl-deterministic", {kind, MOELINK_MANAGER_F_NCCL | MOELINK_MANAGER_F_DETERMINISTIC}});
        }
        return found;
    }();
    std::string known;
    for (const auto &[other, choice] : managers) {
        if (name == other) {
            return choice;
        }
        known += fmt::format("{}{}", known.empty() ? "" : ", ", other);
    }
    throw std::invalid_argument(fmt::format("unknown manager \"{}\"; choose one of {}", name, known));
}

ManagerChoice gathering_baseline(bool on_cuda) {
    return {MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, on_cuda ? uint32_t{MOELINK_MANAGER_F_NCCL} : 0u};
}

int32_t provider_of(const std::string &name) {
    std::string known = "auto";
    if (name == known) {
        return MOELINK_MEMORY_AUTO;
    }
    for (int32_t provider = MOELINK_MEMORY_FABRIC; provider <= MOELINK_MEMORY_HOST_SHM; ++provider) {
        if (name == moelink_provider_name(provider)) {
            return provider;
        }
        known += fmt::format(", {}", moelink_provider_name(provider));
    }
    throw std::invalid_argument(fmt::format("unknown provider \"{}\"; choose one of {}", name, known));
}

Session::Session(const PairOptions &options, moelink_group *group)
    : options_(options),
      group_(group),
      rank_(moelink_group_rank(group)),
      on_cuda_(moelink_group_device(group) == MOELINK_DEVICE_CUDA) {
    device_ = on_cuda_ ? make_cuda_device(moelink_group_device_ordinal(group), options.experts) : make_host_device();
    int32_t gpus = 0;
    shares_gpu_ = on_cuda_ && moelink_device_count(&gpus) == MOELINK_OK && gpus < options.ranks;
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = sizeof(uint64_t) * static_cast<uint64_t>(ranks() + 2);
    moelink_memory *memory = nullptr;
    if (moelink_memory_create(group, &params, &memory) != MOELINK_OK) {
        start_note_ = fmt::format("ranks are aligned by the group's barrier, which starts them some ten us apart: {}",
                                  moelink_last_error());
        return;
    }
    start_memory_.reset(memory);
    for (int peer = 0; peer < ranks(); ++peer) {
        void *address = nullptr;
        must(moelink_memory_peer(memory, peer, &address), "moelink_memory_peer");
        start_words_.push_back(address);
    }
    start_line_ = {start_words_.data(), rank_, ranks(), static_cast<uint64_t>(options.timeout * 1e9)};
    device_->prepare_start_line(start_line_);
    barrier();
}

Session::~Session() {
    try {
        device_->forget_start_line();
    } catch (const std::exception &) {
        // The device's error was reported where it first came up.
    }
}

void Session::introduce(Channel &channel) const {
    struct Name {
        char text[128];
    };
    Name mine{};
    const std::string described = device().describe();
    std::memcpy(mine.text, described.data(), std::min(described.size(), sizeof mine.text - 1));
    const auto names = gather(mine);
    if (rank_ != 0) {
        return;
    }
    nlohmann::json devices = nlohmann::json::array();
    for (const Name &name : names) {
        devices.push_back(name.text);
    }
    channel.send({{"setting", {{"devices", devices}, {"device", on_cuda_ ? "cuda" : "host"}}}});
    if (!start_note_.empty()) {
        channel.send({{"note", start_note_}});
    }
}

void Session::finish(Channel &channel, uint64_t wrong) const {
    must(moelink_group_finalize(group()), "moelink_group_finalize");
    channel.send({{"done", wrong}});
}

void Session::align() const {
    if (start_memory_) {
        device_->wait_start_line(start_line_);
    } else {
        device_->sync();
        barrier();
    }
}

std::vector<double> Session::slowest(const std::vector<double> &mine) const {
    std::vector<double> all(mine.size() * static_cast<size_t>(ranks()));
    must(moelink_group_allgather(group(), mine.data(), all.data(), mine.size() * sizeof(double)), "moelink_group_allgather");
    std::vector<double> most = mine;
    for (size_t i = 0; i < all.size(); ++i) {
        most[i % mine.size()] = std::max(most[i % mine.size()], all[i]);
    }
    return most;
}

namespace {
bool made_by_caller(const Send &send) {
    return send.fp8 && !send.inside;
}
}  // namespace

Job::Job(const Session &session, const World &world, ManagerChoice manager_choice, int sm_budget)
    : session_(session),
      world_(world),
      choice_(manager_choice),
      row_bytes_(static_cast<uint64_t>(world.hidden) * static_cast<uint64_t>(world.dtype.bytes)),
      tokens_here_(static_cast<uint64_t>(world.tokens[static_cast<size_t>(session.rank())])),
      rank_tokens_(world.tokens) {
    const PairOptions &options = session.options();
    sent_bytes_ = {sent_value_bytes(world.send, world.dtype, world.hidden)};
    if (world.send.fp8) {
        sent_bytes_.push_back(sent_scale_bytes(world.send, world.hidden));
    }
    moelink_manager *manager = nullptr;
    must(moelink_manager_create(session.group(), choice_.kind, nullptr, &manager), "moelink_manager_create");
    manager_.reset(manager);
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.flags = choice_.flags;
    config.layouts = 1u << world.layout;
    config.max_tokens = static_cast<int32_t>(world.most_tokens());
    config.top_k = world.topk;
    config.num_experts = world.experts;
    config.payload_count = static_cast<int32_t>(sent_bytes_.size());
    config.payload_row_bytes = sent_bytes_.data();
    config.combine_row_bytes = row_bytes_;
    config.sm_budget = sm_budget;
    config.timeout_ns = static_cast<uint64_t>(options.timeout * 1e9);
    config.provider = provider_of(options.provider);
    must(moelink_manager_init(manager, &config), "moelink_manager_init");
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    must(moelink_manager_sizes_of(manager, &sizes), "moelink_manager_sizes_of");
    workspace_bytes_ = sizes.workspace_bytes;

    Device &device = session.device();
    outputs_[0] = device.alloc(output_bytes());
    outputs_[1] = device.alloc(output_bytes());
    if (options.copy_out) {
        const auto rows = static_cast<uint64_t>(sizes.slots_per_rank) * static_cast<uint64_t>(world.ranks);
        for (size_t payload = 0; payload < sent_bytes_.size(); ++payload) {
            own_rows_[payload].data = device.alloc(rows * sent_bytes_[payload]);
        }
        own_rows_[0].dtype = world.dtype.id;
    }
    const auto &ids = world.ids[static_cast<size_t>(session.rank())];
    const auto &weights = world.weights[static_cast<size_t>(session.rank())];
    ids_ = device.alloc(ids.size() * sizeof(int32_t));
    decoy_ids_ = device.alloc(ids.size() * sizeof(int32_t));
    weights_ = device.alloc(weights.size() * sizeof(float));
    device.copy_in(ids_, ids.data(), ids.size() * sizeof(int32_t));
    device.copy_in(weights_, weights.data(), weights.size() * sizeof(float));
    std::vector<int32_t> others(ids);
    for (auto &id : others) {
        id = id < 0 ? 0 : (id + world.experts / 2 + 1) % world.experts;
    }
    device.copy_in(decoy_ids_, others.data(), others.size() * sizeof(int32_t));
    constexpr int callers_inputs = 3;
    for (int number = 0; number < (made_by_caller(world.send) ? callers_inputs : 1); ++number) {
        fill_input(number);
    }
    if (world.send.fp8) {
        fill_chain_rows(sizes.slots_per_rank);
    }
}

void Job::fill_input(int number) {
    const Send form = made_by_caller(world_.send) ? world_.send : send_of("rows");
    const uint64_t value_bytes = sent_value_bytes(form, world_.dtype, world_.hidden);
    const uint64_t bytes = sent_bytes(form, world_.dtype, world_.hidden);
    Device &device = session_.device();
    auto *input = static_cast<char *>(inputs_.emplace_back(device.alloc(tokens_here_ * bytes)));
    std::vector<char> row(row_bytes_);
    std::vector<char> sent(bytes);
    std::vector<char> values;
    std::vector<char> scales;
    constexpr uint64_t block_bytes = 16u << 20;
    uint64_t copied = 0;
    for (uint64_t token = 0; token < tokens_here_; ++token) {
        given_row(world_, {number, false}, session_.rank(), static_cast<int64_t>(token), row.data());
        send_row(form, world_.dtype, row.data(), world_.hidden, sent.data());
        values.insert(values.end(), sent.begin(), sent.begin() + static_cast<std::ptrdiff_t>(value_bytes));
        scales.insert(scales.end(), sent.begin() + static_cast<std::ptrdiff_t>(value_bytes), sent.end());
        if (values.size() >= block_bytes || token + 1 == tokens_here_) {
            device.copy_in(input + copied, values.data(), values.size());
            copied += values.size();
            values.clear();
        }
    }
    device.copy_in(input + copied, scales.data(), scales.size());
}

// As if each received row's experts gave back the token itself.
void Job::fill_chain_rows(int64_t slots) {
    Device &device = session_.device();
    const uint64_t bytes = static_cast<uint64_t>(slots) * static_cast<uint64_t>(world_.ranks) * row_bytes_;
    chain_rows_ = device.alloc(bytes);
    device.fill(chain_rows_, 0xff, bytes);
    for (int source = 0; source < world_.ranks; ++source) {
        std::vector<char> rows;
        for (int64_t token = 0; token < world_.tokens[static_cast<size_t>(source)]; ++token) {
            if (!gathers_all() && !world_.sends(source, token, session_.rank())) {
                continue;
            }
            rows.resize(rows.size() + row_bytes_);
            given_row(world_, {}, source, token, rows.data() + rows.size() - row_bytes_);
        }
        device.copy_in(static_cast<char *>(chain_rows_) + static_cast<uint64_t>(source * slots) * row_bytes_, rows.data(), rows.size());
    }
    device.sync();
}

const void *Job::chain_input(int pair, int restart) const {
    if (inputs_.size() > 1) {
        return inputs_[static_cast<size_t>(pair) % inputs_.size()];
    }
    return pair % restart == 0 ? tokens() : output((pair + 1) % 2);
}

Given Job::chain_given(int pair, int restart) const {
    if (inputs_.size() > 1) {
        return {static_cast<int>(static_cast<size_t>(pair) % inputs_.size()), false};
    }
    return {0, pair % restart != 0};
}

Job::~Job() {
    session_.device().free_all();  // graphs first: NCCL does not give up a communicator that a graph still holds
    manager_.reset();
}

void Job::dispatch(const void *tokens, const void *ids) {
    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    auto *values = static_cast<char *>(const_cast<void *>(tokens));
    moelink_rows payloads[2] = {{values, row_bytes_, 0, world_.dtype.id, 0}, {}};
    if (world_.send.inside) {
        payloads[1].dtype = world_.send.e8m0 ? MOELINK_DTYPE_E8M0 : MOELINK_DTYPE_F32;
        args.quantize = MOELINK_QUANTIZE_F8E4M3_BLOCK128;
    } else if (world_.send.fp8) {
        payloads[0] = {values, sent_bytes_[0], 0, MOELINK_DTYPE_F8E4M3, 0};
        payloads[1] = {values + tokens_here_ * sent_bytes_[0], sent_bytes_[1], 0, MOELINK_DTYPE_F32, 0};
    }
    args.layout = world_.layout;
    args.num_tokens = static_cast<int32_t>(tokens_here_);
    args.topk_ids = ids;
    args.topk_weights = static_cast<const float *>(weights_);
    args.rank_tokens = rank_tokens_.data();
    args.payload_count = static_cast<int32_t>(sent_bytes_.size());
    args.payloads = payloads;
    args.outputs = own_rows_[0].data != nullptr ? own_rows_ : nullptr;
    view_.payloads = view_rows_;
    must(moelink_dispatch(manager_.get(), &args, session_.device().stream(), &view_), "moelink_dispatch");
}

void Job::combine(void *rows, uint64_t stride, void *output) {
    moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
    args.mode = world_.weighted ? MOELINK_COMBINE_WEIGHTED : MOELINK_COMBINE_SUM;
    args.input = {rows, row_bytes_, stride, world_.dtype.id, 0};
    args.output = {output, row_bytes_, 0, world_.dtype.id, 0};
    must(moelink_combine(manager_.get(), &args, session_.device().stream()), "moelink_combine");
}

void Job::combine_received(void *output) {
    if (chain_rows_ != nullptr) {
        combine(chain_rows_, row_bytes_, output);
    } else {
        combine(view_rows_[0].data, view_rows_[0].row_stride, output);
    }
}

void Job::run_experts() {
    if (expert_rows_ == nullptr) {
        throw std::logic_error("the experts' rows are allocated by poison()");
    }
    const bool fp8 = world_.send.fp8;
    session_.device().experts({view_rows_[0].data, view_stride(0), fp8 ? view_rows_[1].data : nullptr, fp8 ? view_stride(1) : 0,
                               world_.send.e8m0, view_.topk_ids, view_.topk_weights, view_.recv_counts, expert_rows_,
                               view_.slots_per_rank, world_.ranks, world_.topk, world_.hidden, world_.experts, world_.dtype});
}

void Job::combine_experts(void *output) {
    combine(expert_rows_, row_bytes_, output);
}

void Job::decoy() {
    session_.device().fill(outputs_[0], 0xff, output_bytes());
    dispatch(outputs_[0], decoy_ids_);
    combine_received(outputs_[1]);
    session_.device().sync();
}

uint64_t Job::view_stride(size_t payload) const {
    return view_rows_[payload].row_stride > 0 ? view_rows_[payload].row_stride : sent_bytes_[payload];
}

namespace {
constexpr int not_a_number = 0xff;  // as a byte of every type
}

void Job::poison_received() {
    Device &device = session_.device();
    const auto rows = static_cast<uint64_t>(view_.row_capacity);
    session_.barrier();  // no peer still writes
    for (size_t payload = 0; payload < sent_bytes_.size(); ++payload) {
        device.fill(view_rows_[payload].data, not_a_number, rows > 0 ? (rows - 1) * view_stride(payload) + sent_bytes_[payload] : 0);
    }
    device.fill(view_.topk_weights, not_a_number, rows * static_cast<uint64_t>(world_.topk) * sizeof(float));
    device.sync();
    session_.barrier();  // no peer writes yet
}

void Job::poison() {
    Device &device = session_.device();
    const auto rows = static_cast<uint64_t>(view_.row_capacity);
    if (expert_rows_ == nullptr) {
        expert_rows_ = device.alloc(rows * row_bytes_);
    }
    device.fill(expert_rows_, not_a_number, rows * row_bytes_);
    device.fill(outputs_[0], not_a_number, output_bytes());
    device.fill(outputs_[1], not_a_number, output_bytes());
    poison_received();
}

Received Job::received() const {
    Device &device = session_.device();
    device.sync();
    Received got;
    const auto ranks = static_cast<size_t>(world_.ranks);
    const auto rows = static_cast<size_t>(view_.row_capacity);
    got.slots = view_.slots_per_rank;
    got.counts.resize(ranks);
    got.ids.resize(rows * static_cast<size_t>(world_.topk));
    got.weights.resize(got.ids.size());
    device.copy_out(got.counts.data(), view_.recv_counts, ranks * sizeof(int32_t));
    device.copy_out(got.ids.data(), view_.topk_ids, got.ids.size() * sizeof(int32_t));
    device.copy_out(got.weights.data(), view_.topk_weights, got.weights.size() * sizeof(float));
    const uint64_t packed_bytes = sent_bytes(world_.send, world_.dtype, world_.hidden);
    for (size_t source = 0; source < ranks; ++source) {
        const auto count = static_cast<uint64_t>(std::clamp<int64_t>(got.counts[source], 0, got.slots));
        auto &packed = got.rows.emplace_back(count * packed_bytes);
        uint64_t at = 0;
        for (size_t payload = 0; payload < sent_bytes_.size() && count > 0; ++payload) {
            const uint64_t stride = view_stride(payload);
            const uint64_t bytes = sent_bytes_[payload];
            std::vector<char> strided((count - 1) * stride + bytes);
            device.copy_out(strided.data(), static_cast<const char *>(view_rows_[payload].data) + source * static_cast<uint64_t>(got.slots) * stride,
                            strided.size());
            for (uint64_t row = 0; row < count; ++row) {
                std::memcpy(packed.data() + row * packed_bytes + at, strided.data() + row * stride, bytes);
            }
            at += bytes;
        }
    }
    return got;
}

std::vector<char> Job::output_on_host(int which) const {
    session_.device().sync();
    std::vector<char> output(output_bytes());
    session_.device().copy_out(output.data(), outputs_[which], output.size());
    return output;
}

void flip_byte(Device &device, void *value) {
    unsigned char byte = 0;
    device.copy_out(&byte, value, 1);
    byte ^= 1;  // the last bit of a mantissa
    device.copy_in(value, &byte, 1);
}

void Job::corrupt_received() {
    session_.device().sync();
    std::vector<int32_t> counts(static_cast<size_t>(world_.ranks));
    session_.device().copy_out(counts.data(), view_.recv_counts, counts.size() * sizeof(int32_t));
    for (size_t source = 0; source < counts.size(); ++source) {
        if (counts[source] > 0) {
            flip_byte(session_.device(),
                      static_cast<char *>(view_rows_[0].data) + source * static_cast<uint64_t>(view_.slots_per_rank) * view_stride(0));
            return;
        }
    }
}

void Job::corrupt_output(int which) {
    session_.device().sync();
    if (output_bytes() > 0) {
        // The top byte of a value (sign, exponent), so that no tolerance covers it.
        session_.device().fill(static_cast<char *>(outputs_[which]) + world_.dtype.bytes - 1, 0x7b, 1);
    }
}

}  // namespace perf
