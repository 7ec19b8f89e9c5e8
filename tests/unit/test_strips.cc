/* Strips as the copy kernel gets them: every byte of every row in exactly one vector, vectors that are aligned, batches that one launch
 * takes. A plain loop stands for the kernel; tests/gpu runs the same cases on it. */
#include "strip_case.hpp"

#include "eplb/strip_copier.hpp"

#include <csetjmp>
#include <cstdarg>
#include <cstddef>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;
using namespace moelink::kernels;

namespace {

// Memory whose address is a multiple of 16.
class Image {
public:
    explicit Image(const std::vector<unsigned char> &bytes) : words_(bytes.size() / sizeof(Word) + 1), bytes_(bytes.size()) {
        std::memcpy(data(), bytes.data(), bytes_);
    }
    unsigned char *data() { return words_[0].bytes; }
    bool holds(const std::vector<unsigned char> &wanted) { return std::memcmp(data(), wanted.data(), bytes_) == 0; }

private:
    struct alignas(16) Word {
        unsigned char bytes[16];
    };
    std::vector<Word> words_;
    size_t bytes_;
};

void run_part(const StripPart &part, uint64_t width) {
    assert_true(part.vectors % part.row_vectors == 0);
    for (uint64_t vector = 0; vector < part.vectors; ++vector) {
        const uint64_t row = vector / part.row_vectors, column = vector % part.row_vectors;
        unsigned char *to = part.to + row * part.to_stride + column * width;
        const unsigned char *from = part.from + row * part.from_stride + column * width;
        if ((reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from)) % width != 0) fail_msg("a vector is not aligned");
        for (uint64_t i = 0; i < width; ++i) {
            if (to[i] != StripCase::canary) fail_msg("a byte is written twice");
            to[i] = from[i];
        }
    }
}

// Returns the number of launches.
int run(const std::vector<StripCopy> &copies) {
    int launches = 0;
    for_strip_batches(copies.data(), copies.size(), [&](const StripBatch &batch) {
        assert_in_range(batch.count, 1, StripBatch::most_parts);
        uint64_t piece = 0;
        for (int i = 0; i < batch.count; ++i) {
            const StripPart &part = batch.parts[i];
            assert_int_equal(part.end_piece - piece, (part.vectors + piece_vectors - 1) / piece_vectors);
            piece = part.end_piece;
            run_part(part, batch.widths[i]);
        }
        assert_int_equal(batch.pieces(), piece);
        ++launches;
    });
    return launches;
}

void test_random_strips(void **) {
    for (uint64_t seed = 1; seed <= 100; ++seed) {
        const StripCase one(seed, static_cast<int>(seed % 80), seed % 7 == 0 ? 100000 : 0);
        Image source(one.source), target(one.target);
        run(one.copies(target.data(), source.data()));
        assert_true(target.holds(one.wanted));
    }
}

// The parts of a strip at such offsets from multiples of 16.
struct Split {
    std::vector<uint64_t> bytes;
    std::vector<int> widths;
};
Split split(StripCopy copy, uint64_t to, uint64_t from) {
    copy.to = reinterpret_cast<unsigned char *>(uint64_t{1 << 20} + to);
    copy.from = reinterpret_cast<const unsigned char *>(uint64_t{1 << 21} + from);
    Split result;
    for_strip_parts(copy, [&](const StripCopy &part, int32_t width) {
        result.bytes.push_back(part.rows * part.row_bytes);
        result.widths.push_back(width);
    });
    return result;
}

void test_widths(void **) {
    // Dense rows are one row; nothing to copy is nothing.
    assert_true(split({nullptr, nullptr, 10, 24, 24, 24}, 0, 0).widths == std::vector<int>({16}));
    assert_true(split({nullptr, nullptr, 0, 24, 24, 24}, 0, 0).widths.empty());
    assert_true(split({nullptr, nullptr, 3, 0, 0, 0}, 0, 0).widths.empty());
    // Rows at a stride are as wide as all of them allow.
    assert_true(split({nullptr, nullptr, 10, 24, 40, 32}, 0, 0).widths == std::vector<int>({8}));
    assert_true(split({nullptr, nullptr, 10, 24, 40, 36}, 0, 0).widths == std::vector<int>({4}));
    // A long row is whole vectors, whatever it begins and ends with, when both places are as far from one.
    const Split odd = split({nullptr, nullptr, 1, 1000, 1000, 1000}, 5, 21);
    assert_true(odd.widths == std::vector<int>({1, 16, 1}));
    assert_true(odd.bytes == std::vector<uint64_t>({11, 976, 13}));
    assert_true(split({nullptr, nullptr, 1, 1000, 1000, 1000}, 0, 0).widths == std::vector<int>({16, 8}));
    assert_true(split({nullptr, nullptr, 4, 1000, 1008, 1024}, 16, 0).widths == std::vector<int>({16, 8}));
    // Places that are not, and short rows, have narrower ones.
    assert_true(split({nullptr, nullptr, 1, 4096, 4096, 4096}, 4, 0).widths == std::vector<int>({4}));
    assert_true(split({nullptr, nullptr, 1, 4096, 4096, 4096}, 1, 0).widths == std::vector<int>({1}));
    assert_true(split({nullptr, nullptr, 1, 100, 100, 100}, 2, 18).widths == std::vector<int>({2}));
}

// An expert of 64 tensors is one launch; more are as many as they need.
void test_batches(void **) {
    std::vector<unsigned char> from(64 * 64), to(from.size(), StripCase::canary);
    std::vector<StripCopy> copies;
    for (size_t i = 0; i < 64; ++i) copies.push_back({&to[64 * i], &from[64 * i], 1, 32, 32, 32});
    assert_int_equal(run(copies), 1);
    assert_int_equal(run({}), 0);
    std::fill(to.begin(), to.end(), StripCase::canary);
    for (size_t i = 0; i < 64; ++i) copies.push_back({&to[64 * i + 32], &from[64 * i + 32], 1, 32, 32, 32});
    assert_int_equal(run(copies), 2);
    assert_true(to == from);
}

// Which copies the library gives to multiprocessors when it may choose.
void test_many_small(void **) {
    using eplb::ExpertCopy;
    using eplb::Strips;
    auto one = [](const Strips &strips) {
        const ExpertCopy copy{strips, strips};
        return eplb::many_small_strips({&copy, 1});
    };
    constexpr uint64_t small = 200 << 10, large = 300 << 10;
    assert_false(eplb::many_small_strips({}));
    assert_false(one({{nullptr, 1, small, small}}));  // there is nothing to be put together
    assert_true(one({{nullptr, 1, small, small}, {nullptr, 1, small, small}}));
    assert_true(one({{nullptr, 1, large, large}, {nullptr, 1, 100, 100}}));
    assert_false(one({{nullptr, 1, large, large}, {nullptr, 1, large, large}}));
    assert_false(one({{nullptr, 100, 10000, 10000}}));  // rows without gaps are one strip
    assert_true(one({{nullptr, 100, 10000, 10016}}));
    const Strips dense{{nullptr, 100, 10000, 10000}}, apart{{nullptr, 100, 10000, 10016}};
    const ExpertCopy mixed[] = {{dense, apart}, {apart, dense}, {dense, dense}};
    for (const ExpertCopy &copy : mixed) assert_int_equal(eplb::many_small_strips({&copy, 1}), &copy != &mixed[2]);
    const Strips alone{{nullptr, 1, small, small}};
    const ExpertCopy pair[] = {{alone, alone}, {alone, alone}};
    assert_true(eplb::many_small_strips(pair));
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_random_strips),
        cmocka_unit_test(test_widths),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_many_small),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
