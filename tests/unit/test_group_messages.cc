/* Messages between two ranks of a group: over sockets and on the board of threads; order, sizes, rounds that go on meanwhile, faults.
 * Ranks are threads; those over sockets make their groups as processes do. */
#include "group/group.hpp"

#include <moelink/moelink.h>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace {

using moelink::Deadline;
using moelink::Group;
using moelink::Message;
using moelink::Payload;

constexpr uint64_t second = 1'000'000'000;

// What came, from whom, in order.
class Box final : public moelink::Attendant {
public:
    void on_message(const Message &message) noexcept override { got.push_back(message); }
    moelink::Busy poll() noexcept override { return moelink::Busy::no; }
    std::vector<Message> got;
};

Payload numbers(uint64_t first, uint64_t count) {
    auto bytes = std::make_shared<moelink::Bytes>(count * sizeof(uint64_t));
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t value = first + i;
        std::memcpy(bytes->data() + i * sizeof value, &value, sizeof value);
    }
    return Payload(std::move(bytes));
}

bool are_numbers(const Payload &payload, uint64_t first, uint64_t count) {
    const Payload wanted = numbers(first, count);
    return payload.bytes == wanted.bytes && (wanted.bytes == 0 || std::memcmp(payload.data, wanted.data, wanted.bytes) == 0);
}

// Runs a rank on each thread; the text of the first that throws.
std::string run(int size, bool sockets, const std::function<void(Group &)> &body) {
    moelink_rendezvous *rendezvous = nullptr;
    moelink_unique_id id;
    std::vector<moelink_group *> groups(static_cast<size_t>(size));
    std::vector<std::string> texts(groups.size());
    if (sockets) {
        assert_int_equal(moelink_rendezvous_create("127.0.0.1", size, &rendezvous, &id), MOELINK_OK);
    } else {
        assert_int_equal(moelink_group_create_threads(size, nullptr, groups.data()), MOELINK_OK);
    }
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back([&, rank] {
            moelink_group *&group = groups[static_cast<size_t>(rank)];
            std::string &text = texts[static_cast<size_t>(rank)];
            moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
            params.rank = rank;
            params.size = size;
            params.device = MOELINK_DEVICE_HOST;
            if (sockets && moelink_group_create(&id, &params, &group) != MOELINK_OK) {
                text = moelink_last_error();
                return;
            }
            try {
                body(*group->object);
            } catch (const std::exception &error) {
                text = error.what();
                moelink_group_abort(group);
            }
        });
    }
    for (std::thread &thread : threads) thread.join();
    for (moelink_group *group : groups) moelink_group_destroy(group);
    moelink_rendezvous_destroy(rendezvous);
    for (const std::string &text : texts) {
        if (!text.empty()) return text;
    }
    return "";
}

void expect_well(int size, bool sockets, const std::function<void(Group &)> &body) {
    const std::string text = run(size, sockets, body);
    if (!text.empty()) fail_msg("%d ranks, %s: %s", size, sockets ? "sockets" : "board", text.c_str());
}

void require(bool truth, const char *what) {
    if (!truth) throw std::runtime_error(what);
}

// Everybody to everybody, itself too: small and large in turns, and each pair's in order.
void test_order_and_sizes(void **) {
    constexpr uint64_t counts[] = {0, 1, 100, 3000, 300000, 2, 70000};
    for (bool sockets : {false, true}) {
        for (int size : {1, 2, 5}) {
            expect_well(size, sockets, [&](Group &group) {
                const Deadline deadline = Deadline::after_ns(30 * second);
                const auto me = static_cast<uint64_t>(group.rank());
                for (uint64_t i = 0; i < std::size(counts); ++i) {
                    for (int to = 0; to < group.size(); ++to) group.send(to, numbers(me * 1000 + i, counts[i]), deadline);
                }
                Box box;
                const size_t all = std::size(counts) * static_cast<size_t>(group.size());
                require(group.attend(box, [&] { return box.got.size() == all; }, deadline), "not all came");
                std::vector<uint64_t> next(static_cast<size_t>(group.size()));
                for (const Message &message : box.got) {
                    const uint64_t i = next[static_cast<size_t>(message.from)]++;
                    require(are_numbers(message.payload, static_cast<uint64_t>(message.from) * 1000 + i, counts[i]), "other bytes came");
                }
                require(!group.attend(box, [&] { return box.got.size() > all; }, Deadline::after_ns(second / 50)), "one too many came");
                group.barrier(deadline);
            });
        }
    }
}

// A rank that waits in a collective serves its peers: the last one comes only when it has had an answer from each.
void test_served_while_waiting(void **) {
    class Echo final : public moelink::Attendant {
    public:
        Echo(Group &group, const Deadline &deadline) : group_(group), deadline_(deadline) {}
        void on_message(const Message &message) noexcept override {
            try {
                group_.send(message.from, message.payload, deadline_);
            } catch (const std::exception &) {
            }
        }
        moelink::Busy poll() noexcept override { return static_cast<moelink::Busy>(++polls_ % 3); }

    private:
        Group &group_;
        const Deadline deadline_;
        int polls_ = 0;
    };
    for (bool sockets : {false, true}) {
        expect_well(4, sockets, [](Group &group) {
            const Deadline deadline = Deadline::after_ns(30 * second);
            const int last = group.size() - 1;
            for (int round = 0; round < 10; ++round) {
                if (group.rank() == last) {
                    for (int to = 0; to < last; ++to) group.send(to, numbers(static_cast<uint64_t>(round), 5000), deadline);
                    Box box;
                    require(group.attend(box, [&] { return box.got.size() == static_cast<size_t>(last); }, deadline), "no answer");
                    for (const Message &message : box.got) require(are_numbers(message.payload, static_cast<uint64_t>(round), 5000), "another answer");
                    group.allgather(group.rank(), deadline);
                } else {
                    Echo echo(group, deadline);
                    const std::vector<int> all = group.allgather(group.rank(), deadline, &echo);
                    require(all[1] == 1, "the collective went wrong");
                }
            }
        });
    }
}

// A rank that leaves when a collective has been decided does not take the outcome from the others.
void test_leaving_after_a_collective(void **) {
    for (bool sockets : {false, true}) {
        expect_well(5, sockets, [](Group &group) {
            const Deadline deadline = Deadline::after_ns(30 * second);
            for (int round = 0; round < 60; ++round) {
                moelink::Ref<Group> part = group.split(0, group.rank());
                for (int to = 0; to < part->size(); ++to) part->send(to, numbers(0, 10), deadline);
                Box box;
                require(part->attend(box, [&] { return box.got.size() == 5; }, deadline), "not all came");
                part->barrier(deadline);
            }
        });
    }
}

// A payload is given back when it is out, or when the group goes.
void test_payloads_are_given_back(void **) {
    for (bool sockets : {false, true}) {
        std::vector<std::weak_ptr<moelink::Bytes>> kept(40);
        expect_well(2, sockets, [&](Group &group) {
            const Deadline deadline = Deadline::after_ns(30 * second);
            for (size_t i = static_cast<size_t>(group.rank()); i < kept.size(); i += 2) {
                auto bytes = std::make_shared<moelink::Bytes>(100000);
                kept[i] = bytes;
                group.send(1 - group.rank(), Payload(std::move(bytes)), deadline);
            }
            Box box;
            if (group.rank() == 0) require(group.attend(box, [&] { return box.got.size() == kept.size() / 2; }, deadline), "not all came");
            group.barrier(deadline);
        });
        for (const std::weak_ptr<moelink::Bytes> &one : kept) assert_true(one.expired());
    }
}

void test_faults(void **) {
    for (bool sockets : {false, true}) {
        const std::string text = run(3, sockets, [&](Group &group) {
            const Deadline deadline = Deadline::after_ns(30 * second);
            group.send((group.rank() + 1) % 3, numbers(0, 10), deadline);
            if (group.rank() == 2) {
                group.abort();
                return;
            }
            Box box;
            group.attend(box, [] { return false; }, deadline);
        });
        assert_non_null(std::strstr(text.c_str(), "rank 2 aborted the group"));
    }
}

}  // namespace

int main() {
    moelink_log_set_level(MOELINK_LOG_OFF);
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_sizes),
        cmocka_unit_test(test_served_while_waiting),
        cmocka_unit_test(test_leaving_after_a_collective),
        cmocka_unit_test(test_payloads_are_given_back),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
