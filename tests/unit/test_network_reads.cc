/* Reads over a network into memory that a stream still copies from, over the fake driver, whose copies are late. */
#include "fake_driver.hpp"

#include "eplb/comm_round.hpp"
#include "eplb/network_reads.hpp"

#include <moelink/moelink.h>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;
using namespace moelink::eplb;

namespace {

constexpr uint64_t bytes = 5000, piece = 2048;

/* Lands at once, and counts. */
class At final : public NetworkGet {
public:
    bool passed() override { return true; }
};

class Key final : public NetworkKey {
public:
    explicit Key(int &gets) : gets_(gets) {}
    std::unique_ptr<NetworkGet> get(void *to, uint64_t, uint64_t size) override {
        std::memset(to, 0xEE, size);
        ++gets_;
        return std::make_unique<At>();
    }

private:
    int &gets_;
};

class Nowhere final : public Network {
public:
    void connect(int, const uint8_t *, size_t, Loss) override {}
    std::string transports(int) const override { return "none"; }
    std::unique_ptr<NetworkKey> unlock(int, const uint8_t *, size_t) override { return nullptr; }
    std::shared_ptr<NetworkMemory> share(void *, uint64_t) override { return nullptr; }
    std::shared_ptr<NetworkMemory> land(void *, uint64_t) noexcept override { return nullptr; }
    void progress() const override {}
    void close() noexcept override {}
};

void test_landing_is_still_read(void **) {
    fake::install(fake::Machine{.devices = 1});
    fake::act_as(0);
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    moelink_group *group = nullptr;
    params.device = MOELINK_DEVICE_CUDA;
    params.device_ordinal = 0;
    assert_int_equal(moelink_group_create_threads(1, &params, &group), MOELINK_OK);
    {
        const Device device(*group->object);
        const Stream stream(device);
        const Buffer landing(device, bytes), slot(device, bytes);
        const std::vector<unsigned char> wanted(bytes, 0x11);
        std::memcpy(landing.as(), wanted.data(), bytes); /* the driver's device memory is host memory */
        device.copy_rows_async(slot.as(), bytes, landing.as(), bytes, bytes, 1, stream.get());

        int gets = 0;
        Nowhere network;
        NetworkReads reads(network, piece, Mark(device, stream.get()));
        NetworkLayer::Rows rows;
        rows.keys.push_back(std::make_unique<Key>(gets));
        rows.base = {0};
        rows.slot_stride = rows.row_stride = {bytes};
        Transfer receive;
        receive.rows = {Strip{landing.as(), 1, bytes, bytes}};
        receive.slot = 0;
        reads.fetch(receive, rows);
        assert_int_equal(static_cast<int>(reads.poll()), static_cast<int>(Busy::waiting)); /* the copy has not been made when it asks first */
        assert_int_equal(gets, 0);
        for (int turn = 0; turn < 3; ++turn) reads.poll();
        assert_int_equal(gets, 3);
        assert_true(receive.landed);
        reads.end();

        assert_memory_equal(slot.as(), wanted.data(), bytes);
    }
    moelink_group_destroy(group);
    assert_true(fake::outstanding().none());
    fake::uninstall();
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_landing_is_still_read)};
    return cmocka_run_group_tests_name("reads over a network", tests, nullptr, nullptr);
}
