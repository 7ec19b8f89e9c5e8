// The caller's own addresses: nothing is allocated, cleared or freed here.
#include "memory/provider.hpp"

#include <cstring>

namespace moelink {

namespace {

class ExternalCopies final : public Copies {
public:
    ExternalCopies(const std::vector<void *> &addresses, uint64_t size) {
        peers = addresses;
        bytes = size;
        granularity = 1;
    }
    void fill(uint8_t) override { fail(MOELINK_ERR_INTERNAL, "external memory is not filled"); }
    void read(int, void *, uint64_t) override { fail(MOELINK_ERR_INTERNAL, "external memory is not read"); }
};

}  // namespace

std::unique_ptr<Copies> map_external(const std::vector<void *> &addresses, uint64_t bytes) {
    return std::make_unique<ExternalCopies>(addresses, bytes);
}

}  // namespace moelink
