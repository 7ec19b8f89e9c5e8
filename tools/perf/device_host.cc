#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <sched.h>

#include "device.hpp"

namespace perf {

namespace {

using clock = std::chrono::steady_clock;

void expert_row(const ExpertWork &work, int64_t row, std::vector<float> &x, std::vector<float> &sum) {
    const int hidden = work.hidden;
    const char *in = static_cast<const char *>(work.rows) + static_cast<uint64_t>(row) * work.row_stride;
    if (work.scales == nullptr) {
        to_floats(work.dtype, in, hidden, x.data());
    } else {
        const char *scales = static_cast<const char *>(work.scales) + static_cast<uint64_t>(row) * work.scale_stride;
        for (int column = 0; column < hidden; ++column) {
            x[static_cast<size_t>(column)] = e4m3_to_float(static_cast<uint8_t>(in[column])) * scale_at(scales, work.e8m0, column / scale_block);
        }
    }
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int k = 0; k < work.topk; ++k) {
        const int32_t id = work.ids[row * work.topk + k];
        if (id < 0 || id >= work.experts) {
            continue;
        }
        const float weight = work.weights[row * work.topk + k];
        const ExpertMap map = expert_map(id);
        float bias[64];
        for (int i = 0; i < 64; ++i) {
            bias[i] = (map.signs >> i) & 1 ? map.bias : -map.bias;
        }
        for (int block = 0; block < hidden; block += 64) {
            const int columns = std::min(64, hidden - block);
            for (int i = 0; i < columns; ++i) {
                sum[static_cast<size_t>(block + i)] += weight * (map.scale * x[static_cast<size_t>(block + i)] + bias[i]);
            }
        }
    }
    from_floats(work.dtype, sum.data(), hidden, static_cast<char *>(work.out) + row * hidden * work.dtype.bytes);
}

std::string processor_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) {
            return line.substr(line.find(": ") + 2);
        }
    }
    return "unnamed processor";
}

class HostDevice final : public Device {
public:
    ~HostDevice() override { HostDevice::free_all(); }

    void *alloc(uint64_t bytes) override {
        constexpr uint64_t alignment = 4096;
        void *data = std::aligned_alloc(alignment, (std::max<uint64_t>(bytes, 1) + alignment - 1) / alignment * alignment);
        if (data == nullptr) {
            throw std::runtime_error(fmt::format("{} bytes of host memory cannot be allocated", bytes));
        }
        blocks_.push_back(data);
        return data;
    }
    void free_all() override {
        for (void *block : blocks_) {
            std::free(block);
        }
        blocks_.clear();
    }
    void copy_in(void *to, const void *from, uint64_t bytes) override { copy(to, from, bytes); }
    void copy_out(void *to, const void *from, uint64_t bytes) override { copy(to, from, bytes); }
    void copy(void *to, const void *from, uint64_t bytes) override {
        if (bytes > 0) {
            std::memcpy(to, from, bytes);
        }
    }
    void copy_by_sms(const std::vector<Copy> &, int) override {
        throw std::logic_error("the host device has no multiprocessors");
    }
    void fill(void *data, int byte, uint64_t bytes) override {
        if (bytes > 0) {
            std::memset(data, byte, bytes);
        }
    }
    void sync() override {}
    moelink_stream stream() override { return nullptr; }

    void reserve_marks(int count) override { marks_.resize(static_cast<size_t>(count)); }
    void mark(int index) override { marks_[static_cast<size_t>(index)] = clock::now(); }
    double between_us(int from, int to) override {
        return std::chrono::duration<double, std::micro>(marks_[static_cast<size_t>(to)] - marks_[static_cast<size_t>(from)])
            .count();
    }

    bool graphs() const override { return false; }
    void begin_capture() override { throw std::logic_error("the host device has no graphs"); }
    int end_capture() override { throw std::logic_error("the host device has no graphs"); }
    void launch(int) override { throw std::logic_error("the host device has no graphs"); }
    std::vector<Launch> inspect_capture() override { throw std::logic_error("the host device has no graphs"); }
    void bare_launch(int) override { throw std::logic_error("the host device launches nothing"); }

    void experts(const ExpertWork &work) override {
        std::vector<float> x(static_cast<size_t>(work.hidden));
        std::vector<float> sum(static_cast<size_t>(work.hidden));
        for (int source = 0; source < work.ranks; ++source) {
            for (int64_t i = 0; i < work.counts[source]; ++i) {
                expert_row(work, source * work.slots + i, x, sum);
            }
        }
    }

    void prepare_start_line(const StartLine &) override {}
    void forget_start_line() override {}
    void wait_start_line(const StartLine &line) override {
        auto *mine = static_cast<uint64_t *>(line.words[line.rank]);
        const uint64_t round = ++mine[line.ranks];
        for (int peer = 0; peer < line.ranks; ++peer) {
            std::atomic_ref(static_cast<uint64_t *>(line.words[peer])[line.rank]).store(round, std::memory_order_release);
        }
        const auto deadline = clock::now() + std::chrono::nanoseconds(line.timeout_ns);
        for (int peer = 0; peer < line.ranks; ++peer) {
            for (int spins = 0; std::atomic_ref(mine[peer]).load(std::memory_order_acquire) < round; ++spins) {
                constexpr int spins_before_yield = 200;
                if (spins < spins_before_yield) {
                    continue;
                }
                sched_yield();
                if (clock::now() > deadline) {
                    throw std::runtime_error(fmt::format("rank {} did not come to the start line in time", peer));
                }
            }
        }
    }

    std::string describe() const override {
        return fmt::format("{} ({} cores)", processor_name(), std::thread::hardware_concurrency());
    }

private:
    std::vector<void *> blocks_;
    std::vector<clock::time_point> marks_;
};

}  // namespace

std::unique_ptr<Device> make_host_device() {
    return std::make_unique<HostDevice>();
}

}  // namespace perf
