// What all CUDA providers share.
#pragma once

#include "driver/cuda.hpp"
#include "memory/provider.hpp"

namespace moelink {

class DeviceCopies : public Copies {
public:
    DeviceCopies(const Group &group, uint64_t size, uint64_t page);
    void fill(uint8_t value) override;
    void read(int rank, void *to, uint64_t size) override;

protected:
    int ordinal() const { return ordinal_; }
    const PrimaryContext &context() const { return context_; }
    size_t rank() const { return rank_; }
    CUdeviceptr address(size_t rank) const { return reinterpret_cast<CUdeviceptr>(peers[rank]); }
    void set_address(size_t rank, CUdeviceptr at) { peers[rank] = reinterpret_cast<void *>(at); }

private:
    int ordinal_;
    size_t rank_;
    PrimaryContext context_;
};

// For destructors: a failure there can only be told to the log.
void warn_unless_done(CUresult result, const char *what) noexcept;

// Lets the current device, `ordinal`, use plain memory of another one in this process; stays on, since others may rely on it by
// now. Throws UNSUPPORTED when they do not reach each other.
void reach_device(int ordinal, int other);

// An attribute of the group's device; 0 where the driver does not know it.
int device_attribute(const Group &group, CUdevice_attribute which);

}  // namespace moelink
