#include "group/place.hpp"

#include "base/params.hpp"
#include "driver/device.hpp"

#include <moelink/device.h>

namespace moelink {

namespace {

constexpr uint64_t default_timeout_ns = 30'000'000'000;

int cuda_ordinal(int32_t wanted) {
    int32_t count = 0;
    moelink_device_count(&count);
    const int ordinal = wanted < 0 ? cuda_current_ordinal() : wanted;
    if (wanted < -1 || ordinal >= count) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "device_ordinal {} is neither -1 (the current device) nor one of 0 .. {}", wanted, count - 1);
    }
    moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
    if (moelink_device_describe(ordinal, &info) == MOELINK_OK && info.supported == 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "CUDA device {} ({}) has compute capability {}.{}; the library has kernels for 9.0 and higher",
             ordinal, info.name, info.compute_capability / 10, info.compute_capability % 10);
    }
    return ordinal;
}

}  // namespace

Group::Place read_place(const moelink_group_params *given, const char *name) {
    const moelink_group_params defaults = MOELINK_GROUP_PARAMS_INIT;
    moelink_group_params params = read_params(given, defaults, name);
    if (params.size < 1 || params.size > MOELINK_GROUP_MAX_RANKS) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.size {} is not in 1 .. {}", name, params.size,
             static_cast<int>(MOELINK_GROUP_MAX_RANKS));
    }
    if (params.rank < 0 || params.rank >= params.size) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.rank {} is not in 0 .. {} (size {})", name, params.rank, params.size - 1,
             params.size);
    }
    if (params.flags != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.flags is {:#x}; no flag is defined", name, params.flags);

    Group::Place place;
    place.rank = params.rank;
    place.size = params.size;
    place.timeout_ns = params.timeout_ns != 0 ? params.timeout_ns : default_timeout_ns;
    if (params.socket_dir != nullptr) place.socket_dir = params.socket_dir;
    switch (params.device) {
    case MOELINK_DEVICE_HOST: break;
    case MOELINK_DEVICE_AUTO:
    case MOELINK_DEVICE_CUDA: {
        if (cuda_device_count_usable() > 0) {
            place.device = MOELINK_DEVICE_CUDA;
            place.ordinal = cuda_ordinal(params.device_ordinal);
        } else if (params.device == MOELINK_DEVICE_CUDA) {
            fail(MOELINK_ERR_NO_DRIVER, "{}.device is MOELINK_DEVICE_CUDA, but no usable GPU was found; moelink-info shows why",
                 name);
        }
        break;
    }
    default:
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{}.device {} is none of MOELINK_DEVICE_AUTO, _HOST and _CUDA", name, params.device);
    }
    return place;
}

const char *device_name(int32_t device) { return device == MOELINK_DEVICE_CUDA ? "CUDA" : device == MOELINK_DEVICE_HOST ? "host"
                                         : "unknown"; }

std::string device_contradiction(int rank, int32_t device, int other_rank, int32_t other_device) {
    return fmt::format("rank {} is on the {} device, rank {} on the {} device; name the device in moelink_group_params", rank,
                       device_name(device), other_rank, device_name(other_device));
}

}  // namespace moelink
