// Which addresses of a listener are tried from where.
#include "group/endpoint.hpp"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdarg>
#include <csetjmp>
#include <cstddef>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

Endpoint listener(bool with_another_address) {
    Endpoint endpoint{};
    endpoint.network = this_network();
    endpoint.port = 4711;
    endpoint.addresses[endpoint.count++] = to_address(asio::ip::address_v4::loopback());
    if (with_another_address) endpoint.addresses[endpoint.count++] = to_address(asio::ip::make_address_v4("192.0.2.1"));
    return endpoint;
}

bool tries_loopback(const Endpoint &endpoint) {
    for (const asio::ip::tcp::endpoint &one : candidates(endpoint)) {
        if (one.address().is_loopback()) return true;
    }
    return false;
}

void test_here_and_elsewhere(void **) {
    Endpoint endpoint = listener(true);
    assert_true(this_network() != NetworkId{});
    assert_true(tries_loopback(endpoint));
    assert_int_equal(candidates(endpoint).size(), 2);
    endpoint.network[3] ^= 1;
    assert_false(tries_loopback(endpoint));
    assert_int_equal(candidates(endpoint).size(), 1);
    endpoint.network = {};
    assert_true(tries_loopback(endpoint));
    endpoint = listener(false);
    endpoint.network[3] ^= 1;
    assert_true(tries_loopback(endpoint));  // it has no other
}

// Two containers of one machine do not share a loopback.
void test_other_namespace(void **) {
    enum { not_allowed = 77 };
    const Endpoint endpoint = listener(true);
    const pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) _exit(not_allowed);
        _exit(tries_loopback(endpoint) ? 1 : 0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == not_allowed) {
        print_message("this process may not make a network namespace\n");
        skip();
    }
    assert_int_equal(status, 0);
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_here_and_elsewhere),
        cmocka_unit_test(test_other_namespace),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
