/* The host's sums of rows: every version that this processor can run gives the bits of the plain one, and the plain one gives
 * what the arithmetic says. With --bench: how long each takes, beside a memcpy of the rows.
 * Rows end where readable memory ends, so that a read beyond them is a fault. */
#include "kernels/host/sum.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

extern "C" {
#include <cmocka.h>

#include "values.h"
}

using namespace moelink::kernels;
using namespace moelink::kernels::host;

namespace {

constexpr int32_t types[] = {value_f32, value_f16, value_bf16};
constexpr const char *type_names[] = {"", "f32", "f16", "bf16"};

size_t bytes_of(int32_t type) { return type == value_f32 ? 4 : 2; }

// Memory that ends at a page that cannot be touched.
class Fence {
public:
    explicit Fence(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), size_((bytes + page_ - 1) / page_ * page_) {
        void *data = mmap(nullptr, size_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(data != MAP_FAILED);
        data_ = static_cast<unsigned char *>(data);
        assert_int_equal(mprotect(data_ + size_, page_, PROT_NONE), 0);
    }
    Fence(const Fence &) = delete;
    Fence &operator=(const Fence &) = delete;
    ~Fence() { munmap(data_, size_ + page_); }
    // The last `bytes` before the fence, less `gap`.
    unsigned char *last(size_t bytes, size_t gap) const { return data_ + size_ - gap - bytes; }

private:
    size_t page_;
    size_t size_;
    unsigned char *data_ = nullptr;
};

// Bits of all kinds: NaNs with payloads, infinities, subnormal numbers, numbers that cancel.
void fill(uint64_t seed, int32_t type, unsigned char *row, size_t values) {
    random_bytes(seed, row, values * bytes_of(type));
    static const uint32_t f32s[] = {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffc12345u, 1u, 0x807fffffu, 0u,
                                    0x80000000u, 0x7f7fffffu};
    static const uint16_t f16s[] = {0x7c00u, 0xfc00u, 0x7c01u, 0xfe55u, 1u, 0x83ffu, 0u, 0x8000u, 0x7bffu};
    static const uint16_t bf16s[] = {0x7f80u, 0xff80u, 0x7f81u, 0xffd5u, 1u, 0x807fu, 0u, 0x8000u, 0x7f7fu};
    uint64_t state = seed;
    for (size_t i = 0; i < values; ++i) {
        const int kind = random_range(&state, 0, 40);
        if (kind >= 9) continue;
        if (type == value_f32) std::memcpy(row + 4 * i, &f32s[kind], 4);
        if (type == value_f16) std::memcpy(row + 2 * i, &f16s[kind], 2);
        if (type == value_bf16) std::memcpy(row + 2 * i, &bf16s[kind], 2);
    }
}

void compare_with_plain(const SumCode &code, int32_t type, size_t values, int count, bool weighted, size_t shift) {
    const size_t bytes = values * bytes_of(type);
    std::vector<std::unique_ptr<Fence>> fences;
    std::vector<const unsigned char *> rows;
    std::vector<float> weights;
    for (int row = 0; row < count; ++row) {
        fences.push_back(std::make_unique<Fence>(bytes + 16));
        unsigned char *at = fences.back()->last(bytes, row % 2 == 0 ? 0 : shift);
        fill(random_mix(values * 64 + static_cast<size_t>(count), static_cast<uint64_t>(row)), type, at, values);
        rows.push_back(at);
        weights.push_back(row % 3 == 2 ? -0.0f : 0.3f + 0.17f * static_cast<float>(row));
    }
    constexpr unsigned char untouched = 0xc3;
    std::vector<unsigned char> expected(bytes + 64, untouched);
    std::vector<unsigned char> got(bytes + 64, untouched);
    const float *factors = weighted ? weights.data() : nullptr;
    sum_codes().front().of(type)(expected.data() + shift, rows.data(), factors, count, values);
    code.of(type)(got.data() + shift, rows.data(), factors, count, values);
    for (size_t i = 0; i < got.size(); ++i) {
        if (got[i] == expected[i]) continue;
        fail_msg("%s, %s, %zu values, %d rows%s, shifted by %zu: byte %td is 0x%02x, in the plain version 0x%02x", code.name,
                 type_names[type], values, count, weighted ? ", weighted" : "", shift,
                 static_cast<ptrdiff_t>(i) - static_cast<ptrdiff_t>(shift), got[i], expected[i]);
    }
}

void test_same_bits_as_plain(void **) {
    size_t compared = 0;
    for (const SumCode &code : sum_codes().subspan(1)) {
        if (!code.runs_here()) {
            print_message("%s does not run here\n", code.name);
            continue;
        }
        for (int32_t type : types) {
            for (size_t values = 0; values <= 150; ++values) {
                compare_with_plain(code, type, values, static_cast<int>(values % 9), values % 2 == 1, values % 5);
                ++compared;
            }
            for (int count : {0, 1, 2, 3, 4, 8, max_top_k}) {
                for (size_t values : {1024, 2880, 7167, 7168}) {
                    compare_with_plain(code, type, values, count, count % 3 == 2, values % 7);
                    ++compared;
                }
            }
        }
    }
    assert_true(compared > 0);
}

// One row: each of a 16-bit type's values comes back as it was, but for what the contract says of NaN and -0.
void test_every_half(void **) {
    std::vector<uint16_t> all(65536);
    std::vector<uint16_t> out(all.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    const auto *row = reinterpret_cast<const unsigned char *>(all.data());
    for (const SumCode &code : sum_codes()) {
        if (!code.runs_here()) continue;
        for (int32_t type : {value_f16, value_bf16}) {
            const unsigned infinity = type == value_f16 ? 0x7c00u : 0x7f80u;
            const unsigned quiet = type == value_f16 ? 0x7e00u : 0x7fc0u;
            code.of(type)(reinterpret_cast<unsigned char *>(out.data()), &row, nullptr, 1, all.size());
            for (size_t i = 0; i < all.size(); ++i) {
                const unsigned expected = (i & 0x7fffu) > infinity ? quiet : i == 0x8000u ? 0 : static_cast<unsigned>(i);
                if (out[i] != expected) fail_msg("%s, %s 0x%04zx: 0x%04x", code.name, type_names[type], i, unsigned{out[i]});
            }
        }
    }
}

struct Known {
    int32_t type;
    uint32_t a, b;    // bits of the two rows' values
    float weights[2];
    uint32_t sum;
    const char *what;
};

constexpr Known known[] = {
    {value_bf16, 0x3f80, 0x3b80, {1, 1}, 0x3f80, "1 + 2^-8: a tie, down to even"},
    {value_bf16, 0x3f81, 0x3b80, {1, 1}, 0x3f82, "1 + 2^-7 + 2^-8: a tie, up to even"},
    {value_bf16, 0x3f80, 0x3b81, {1, 1}, 0x3f81, "just above a tie"},
    {value_bf16, 0x7f7f, 0x7f7f, {1, 1}, 0x7f80, "overflow in fp32"},
    {value_bf16, 0x7f7f, 0x7b80, {1, 1}, 0x7f80, "overflow in the rounding"},
    {value_bf16, 0x7f80, 0xff80, {1, 1}, 0x7fc0, "infinity less infinity"},
    {value_bf16, 0x0001, 0x0001, {1, 1}, 0x0002, "subnormal numbers are kept"},
    {value_bf16, 0xbf80, 0x3f80, {1, 1}, 0x0000, "a zero without sign"},
    {value_bf16, 0x4040, 0x40a0, {0.5f, 2}, 0x4138, "0.5 * 3 + 2 * 5"},
    {value_bf16, 0x7f80, 0x3f80, {0, 1}, 0x7fc0, "0 * infinity"},
    {value_f16, 0x3c00, 0x1000, {1, 1}, 0x3c00, "1 + 2^-11: a tie, down to even"},
    {value_f16, 0x3c01, 0x1000, {1, 1}, 0x3c02, "1 + 2^-10 + 2^-11: a tie, up to even"},
    {value_f16, 0x7bff, 0x4c00, {1, 1}, 0x7c00, "65504 + 16: a tie, up to infinity"},
    {value_f16, 0x7bff, 0x4bff, {1, 1}, 0x7bff, "65504 + less than 16"},
    {value_f16, 0x0001, 0x0002, {1, 1}, 0x0003, "subnormal numbers are kept"},
    {value_f16, 0x0001, 0x0000, {0.5f, 1}, 0x0000, "half of the least: a tie, down to even"},
    {value_f16, 0x0003, 0x0000, {0.5f, 1}, 0x0002, "3/2 of the least: a tie, up to even"},
    {value_f16, 0x03ff, 0x0001, {1, 1}, 0x0400, "from subnormal to normal"},
    {value_f16, 0xfc00, 0x7bff, {1, 1}, 0xfc00, "minus infinity"},
    {value_f32, 0x3f800000, 0x33800000, {1, 1}, 0x3f800000, "1 + 2^-24: a tie, down to even"},
    {value_f32, 0x00000001, 0x00000001, {1, 1}, 0x00000002, "subnormal numbers are kept"},
    {value_f32, 0xff812345, 0x3f800000, {1, 1}, 0x7fc00000, "a signalling NaN"},
    {value_f32, 0x3f800001, 0xbf800001, {1.0000001f, 1}, 0x34000000, "product and sum are rounded one by one"},
};

void test_known_sums(void **) {
    for (const SumCode &code : sum_codes()) {
        if (!code.runs_here()) continue;
        for (const Known &one : known) {
            const auto *a = reinterpret_cast<const unsigned char *>(&one.a);
            const auto *b = reinterpret_cast<const unsigned char *>(&one.b);
            const unsigned char *rows[] = {a, b};
            uint32_t out = 0;
            code.of(one.type)(reinterpret_cast<unsigned char *>(&out), rows, one.weights, 2, 1);
            if (out != one.sum) fail_msg("%s, %s, %s: 0x%x, must be 0x%x", code.name, type_names[one.type], one.what, out, one.sum);
        }
    }
}

void test_best_runs_here(void **) {
    const SumCode &best = best_sum_code();
    assert_true(best.runs_here());
    assert_ptr_not_equal(&best, &sum_codes().front());
    for (const SumCode *wider = &best + 1; wider <= &sum_codes().back(); ++wider) assert_false(wider->runs_here());
}

template <class Work>
double least_us(Work work) {
    double least = 1e9;
    for (int round = 0; round < 20; ++round) {
        constexpr int times = 20;
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < times; ++i) work();
        const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / times;
        least = us < least ? us : least;
    }
    return least;
}

int bench() {
    constexpr size_t values = 7168;
    std::printf("[us] for sums of rows of %zu values in the cache, least of 20 rounds\n%-6s%5s%10s", values, "", "rows", "memcpy");
    for (const SumCode &code : sum_codes()) std::printf("%10s", code.runs_here() ? code.name : "-");
    std::printf("\n");
    for (int32_t type : types) {
        for (int count : {1, 2, 4, 8}) {
            const size_t bytes = values * bytes_of(type);
            std::vector<std::vector<unsigned char>> data(static_cast<size_t>(count), std::vector<unsigned char>(bytes, 0x3c));
            std::vector<unsigned char> out(bytes);
            std::vector<const unsigned char *> rows;
            for (const auto &row : data) rows.push_back(row.data());
            std::printf("%-6s%5d%10.2f", type_names[type], count, least_us([&] {
                            for (const unsigned char *row : rows) {
                                std::memcpy(out.data(), row, bytes);
                                asm volatile("" ::"r"(out.data()) : "memory");
                            }
                        }));
            for (const SumCode &code : sum_codes()) {
                const SumRows sum = code.of(type);
                const auto work = [&] { sum(out.data(), rows.data(), nullptr, count, values); };
                std::printf("%10.2f", code.runs_here() ? least_us(work) : 0.0);
            }
            std::printf("\n");
        }
    }
    return 0;
}

}  // namespace

int main(int count, char **words) {
    if (count > 1 && std::strcmp(words[1], "--bench") == 0) return bench();
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_as_plain),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_known_sums),
        cmocka_unit_test(test_best_runs_here),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
