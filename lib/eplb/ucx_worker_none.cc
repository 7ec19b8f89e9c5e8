// In place of ucx_worker.cc in a build without UCX's headers: no worker can be made, and so nothing else either.
#include "eplb/ucx_worker.hpp"

#include "driver/ucx.hpp"

namespace moelink::eplb {

struct UcxWorker::Peer {};

UcxWorker::UcxWorker(const Device &, int) { version_ = ucx_version(); }
UcxWorker::~UcxWorker() = default;
void UcxWorker::connect(int, const uint8_t *, Loss) {}
std::string UcxWorker::transports(int) const { return "none"; }
void UcxWorker::progress() const {}
void UcxWorker::close() noexcept {}

UcxMemory::UcxMemory(std::shared_ptr<UcxWorker>, void *, uint64_t) { ucx_version(); }
UcxMemory::~UcxMemory() = default;

UcxKey::UcxKey(std::shared_ptr<UcxWorker>, int peer, const uint8_t *) : peer_(peer) { ucx_version(); }
UcxKey::~UcxKey() = default;

UcxGet::UcxGet(const UcxKey &key, void *, uint64_t, uint64_t) : worker_(key.worker_.get()), peer_(key.peer_) { ucx_version(); }
UcxGet &UcxGet::operator=(UcxGet &&) noexcept = default;
UcxGet::~UcxGet() = default;
bool UcxGet::passed() { return true; }

}  // namespace moelink::eplb
