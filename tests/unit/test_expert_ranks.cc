/* Which rank owns an expert: the multiplication that stands for a division is right for every expert. */
#include "kernels/launch.hpp"

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

extern "C" {
#include <cmocka.h>
}

namespace {

using moelink::kernels::Divisor;
using moelink::kernels::ExpertRanks;

// By the rule itself: rank r has experts / ranks of them, the first experts % ranks ranks one more.
void every_expert(int32_t experts, int32_t ranks, int64_t step) {
    const ExpertRanks owners(experts, ranks);
    int32_t rank = 0;
    int64_t end = experts / ranks + (experts % ranks > 0 ? 1 : 0);
    for (int64_t expert = 0; expert < experts; expert += step) {
        while (expert >= end) {
            ++rank;
            end += experts / ranks + (rank < experts % ranks ? 1 : 0);
        }
        assert_int_equal(owners.rank_of(expert), rank);
        assert_int_equal(owners.rank_of(static_cast<int32_t>(expert)), rank);
        if (owners.divides_small()) assert_int_equal(owners.rank_of_small(expert), rank);
    }
    for (int64_t id : {int64_t{-1}, int64_t{INT32_MIN}, INT64_MIN, int64_t{experts}, int64_t{INT32_MAX}, int64_t{1} << 32, INT64_MAX}) {
        assert_int_equal(owners.rank_of(id), -1);
        if (owners.divides_small()) assert_int_equal(owners.rank_of_small(id), -1);
    }
    assert_int_equal(owners.rank_of(INT32_MIN), -1);
    assert_int_equal(owners.rank_of(experts), -1);
    assert_true(owners.divides_small() == (experts <= 65536));
}

void test_ranks_of_experts(void **) {
    for (int32_t experts : {1, 2, 3, 7, 64, 255, 256, 257, 384, 1000, 65535, 65536, 65537}) {
        for (int32_t ranks : {1, 2, 3, 4, 7, 8, 64, 72, 128, 320, 1024}) every_expert(experts, ranks, 1);
    }
    every_expert(1 << 24, 3, 1);
    every_expert((1 << 24) - 1, 1021, 7);
}

void test_division(void **) {
    for (uint32_t number : {1u, 2u, 3u, 5u, 7u, 255u, 256u, 641u, 65535u, 65536u, 6700417u, 0x7fffffffu, 0x80000000u, 0x80000001u, UINT32_MAX}) {
        const Divisor divisor(number);
        for (uint64_t base = 0; base <= UINT32_MAX; base += UINT32_MAX / 997) {
            const uint64_t multiple = base / number * number;
            for (int64_t offset = -1; offset <= 1; ++offset) {
                const auto numerator = static_cast<uint32_t>(multiple + static_cast<uint64_t>(offset));
                assert_int_equal(divisor.divide(numerator), numerator / number);
            }
        }
        assert_int_equal(divisor.divide(UINT32_MAX), UINT32_MAX / number);
        for (uint32_t numerator = 0; numerator < Divisor::small_end; ++numerator) assert_int_equal(divisor.divide_small(numerator), numerator / number);
    }
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_ranks_of_experts), cmocka_unit_test(test_division)};
    return cmocka_run_group_tests_name("experts' ranks", tests, nullptr, nullptr);
}
