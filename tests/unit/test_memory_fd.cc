/* Passing file descriptors between ranks: who gets what, and what strangers and failures do. Ranks are threads. */
#include "memory/fd_exchange.hpp"
#include "memory/fd_socket.hpp"

#include <moelink/moelink.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

struct Outcome {
    moelink_status status = MOELINK_OK;
    std::string text;
    std::vector<int> got;  // by rank: the number in the memfd that came; -1: nothing
};

// Every rank runs the body with its group; what it throws is its outcome.
using Body = std::function<void(Group &, Outcome &)>;

std::vector<Outcome> run(int size, const char *directory, const Body &body) {
    std::vector<moelink_group_params> params(static_cast<size_t>(size), moelink_group_params(MOELINK_GROUP_PARAMS_INIT));
    for (moelink_group_params &each : params) {
        each.device = MOELINK_DEVICE_HOST;
        each.socket_dir = directory;
        each.timeout_ns = 20'000'000'000;
    }
    std::vector<moelink_group *> groups(params.size());
    assert_int_equal(moelink_group_create_threads(size, params.data(), groups.data()), MOELINK_OK);
    std::vector<Outcome> outcomes(groups.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
        threads.emplace_back([&, rank] {
            try {
                body(*groups[rank]->object, outcomes[rank]);
            } catch (const Error &error) {
                outcomes[rank].status = error.status();
                outcomes[rank].text = error.text();
            }
        });
    }
    for (std::thread &thread : threads) thread.join();
    for (moelink_group *group : groups) moelink_group_destroy(group);
    return outcomes;
}

Fd numbered(int number) {
    Fd fd(memfd_create("test", MFD_CLOEXEC));
    if (!fd || write(fd.get(), &number, sizeof number) != sizeof number) throw Error(MOELINK_ERR_INTERNAL, "no memfd");
    return fd;
}

int number_in(const Fd &fd) {
    int number = -1;
    return pread(fd.get(), &number, sizeof number, 0) == sizeof number ? number : -1;
}

void exchange_numbers(Group &group, Outcome &outcome) {
    outcome.got.assign(static_cast<size_t>(group.size()), -1);
    Fd mine = numbered(100 + group.rank());
    exchange_fds(group, mine.get(), group.deadline(), [&](int peer, Fd fd) {
        if ((fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) == 0) throw Error(MOELINK_ERR_INTERNAL, "not closed by exec");
        outcome.got[static_cast<size_t>(peer)] = number_in(fd);
    });
}

void expect_all(const std::vector<Outcome> &outcomes) {
    for (size_t rank = 0; rank < outcomes.size(); ++rank) {
        if (outcomes[rank].status != MOELINK_OK) fail_msg("rank %zu: %s", rank, outcomes[rank].text.c_str());
        for (size_t peer = 0; peer < outcomes.size(); ++peer) {
            assert_int_equal(outcomes[rank].got[peer], peer == rank ? -1 : 100 + static_cast<int>(peer));
        }
    }
}

void expect_alike(const std::vector<Outcome> &outcomes, moelink_status status, const char *part) {
    for (const Outcome &outcome : outcomes) {
        assert_int_equal(outcome.status, status);
        assert_string_equal(outcome.text.c_str(), outcomes[0].text.c_str());
        if (outcome.text.find(part) == std::string::npos) fail_msg("\"%s\" is not in \"%s\"", part, outcome.text.c_str());
    }
}

size_t open_files() {
    auto folder = std::filesystem::directory_iterator("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(folder), end(folder)));
}

class Folder {
public:
    Folder() { assert_non_null(mkdtemp(path_)); }
    ~Folder() { std::filesystem::remove_all(path_); }
    const char *path() const { return path_; }
    bool empty() const { return std::filesystem::is_empty(path_); }

private:
    char path_[32] = "/tmp/moelink-test-XXXXXX";
};

void test_everybody_gets_everything(void **) {
    size_t files = open_files();
    Folder folder;
    for (int size : {1, 2, 3, 8, 40}) {  // 40: more than connect at once
        expect_all(run(size, nullptr, exchange_numbers));
        expect_all(run(size, folder.path(), exchange_numbers));
        assert_true(folder.empty());
        assert_int_equal(open_files(), files);
    }
}

void test_a_take_that_throws(void **) {
    size_t files = open_files();
    std::vector<Outcome> outcomes = run(4, nullptr, [](Group &group, Outcome &) {
        Fd mine = numbered(group.rank());
        exchange_fds(group, mine.get(), group.deadline(), [&](int peer, Fd) {
            if (group.rank() == 2 && peer == 1) throw Error(MOELINK_ERR_OUT_OF_MEMORY, "no room");
        });
    });
    expect_alike(outcomes, MOELINK_ERR_OUT_OF_MEMORY, "rank 2: memory of rank 1: no room");
    assert_int_equal(open_files(), files);
}

void test_bad_descriptor(void **) {
    for (int bad = 0; bad < 3; ++bad) {
        alarm(60);  // the others do not wait for their deadline
        std::vector<Outcome> outcomes = run(3, nullptr, [&](Group &group, Outcome &) {
            Fd mine = numbered(group.rank());
            exchange_fds(group, group.rank() == bad ? 987654 : mine.get(), Deadline::after_ns(600'000'000'000), [](int, Fd) {});
        });
        alarm(0);
        expect_alike(outcomes, MOELINK_ERR_UNSUPPORTED, "Bad file descriptor");
        assert_int_equal(outcomes[0].text.find(fmt::format("rank {}: rank ", bad)), 0);
    }
}

void test_folder_that_is_not_there(void **) {
    expect_alike(run(2, "/nowhere/at/all", exchange_numbers), MOELINK_ERR_UNSUPPORTED, "/nowhere/at/all/moelink-");
    std::string deep = "/tmp/" + std::string(120, 'x');
    expect_alike(run(2, deep.c_str(), exchange_numbers), MOELINK_ERR_INVALID_ARGUMENT, "too long");
}

// Connects to every socket that it finds in the folder and talks nonsense, while ranks exchange.
void pester(const char *folder, const std::atomic<bool> &stop, std::atomic<int> &connected) {
    std::vector<Fd> kept;
    Fd bait = numbered(666);
    while (!stop) {
        std::error_code ignored;
        for (const auto &entry : std::filesystem::directory_iterator(folder, ignored)) {
            FdSocketName name{};
            std::strncpy(name.data(), entry.path().filename().c_str(), name.size() - 1);
            try {
                Fd fd = connect_fd_socket(folder, name);
                if (!fd) continue;
                ++connected;
                switch (connected % 4) {
                case 0:
                    send_fd(fd.get(), FdMessage{}, bait.get());  // the token is wrong
                    break;
                case 1:
                    send(fd.get(), "hello", 5, MSG_NOSIGNAL);
                    break;
                case 2:
                    kept.push_back(std::move(fd));  // says nothing
                    break;
                default:
                    break;  // hangs up at once
                }
            } catch (const Error &) {
            }
        }
        if (kept.size() > 200) kept.clear();
    }
}

void test_strangers(void **) {
    Folder folder;
    std::atomic<bool> stop{false};
    std::atomic<int> connected{0};
    std::thread stranger([&] { pester(folder.path(), stop, connected); });
    std::vector<std::vector<Outcome>> all;
    for (int round = 0; round < 20; ++round) all.push_back(run(4, folder.path(), exchange_numbers));
    stop = true;
    stranger.join();
    for (const std::vector<Outcome> &outcomes : all) expect_all(outcomes);
    print_message("strangers' connections: %d\n", connected.load());
    assert_true(connected > 0);
}

void test_socket_is_private(void **) {
    Folder folder;
    FdListener listener(folder.path());
    struct stat info{};
    std::string path = std::string(folder.path()) + "/" + listener.name().data();
    assert_int_equal(stat(path.c_str(), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    FdListener other(folder.path());
    assert_string_not_equal(listener.name().data(), other.name().data());
    require_fd_socket(folder.path(), other.name());
}

// Only exactly one message with exactly one descriptor counts, and nothing that came with another is kept.
void test_messages(void **) {
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    Fd near(pair[0]);
    Fd far(pair[1]);
    Fd bait = numbered(7);
    FdMessage message{};
    Fd got;
    assert_true(receive_fd(far.get(), message, got) == Received::nothing);
    size_t files = open_files();
    send_fd(near.get(), FdMessage{{}, 5, 0}, bait.get());
    assert_true(receive_fd(far.get(), message, got) == Received::message);
    assert_int_equal(message.rank, 5);
    assert_int_equal(number_in(got), 7);
    got.close();
    assert_int_equal(send(near.get(), &message, sizeof message, 0), sizeof message);  // without a descriptor
    assert_true(receive_fd(far.get(), message, got) == Received::closed);

    int two[2] = {bait.get(), bait.get()};
    iovec part{&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof two)] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr *first = CMSG_FIRSTHDR(&header);
    first->cmsg_level = SOL_SOCKET;
    first->cmsg_type = SCM_RIGHTS;
    first->cmsg_len = CMSG_LEN(sizeof two);
    std::memcpy(CMSG_DATA(first), two, sizeof two);
    assert_int_equal(sendmsg(near.get(), &header, 0), sizeof message);
    assert_true(receive_fd(far.get(), message, got) == Received::closed);
    assert_false(static_cast<bool>(got));
    assert_int_equal(open_files(), files);
    near.close();
    assert_true(receive_fd(far.get(), message, got) == Received::closed);
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_everybody_gets_everything),
        cmocka_unit_test(test_a_take_that_throws),
        cmocka_unit_test(test_bad_descriptor),
        cmocka_unit_test(test_folder_that_is_not_there),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_socket_is_private),
        cmocka_unit_test(test_messages),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
