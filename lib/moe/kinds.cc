#include "moe/backend.hpp"

#include "base/guard.hpp"
#include "base/params.hpp"

namespace moelink {

namespace {

const ManagerKind *const kinds[] = {&one_sided_kind, &two_sided_kind, &allgather_reducescatter_kind, &reference_kind};

}  // namespace

const ManagerKind *find_kind(int32_t kind) {
    for (const ManagerKind *row : kinds) {
        if (row->kind == kind) return row;
    }
    return nullptr;
}

kernels::ValueType value_type_of(int32_t dtype) {
    switch (dtype) {
        case MOELINK_DTYPE_F32: return kernels::value_f32;
        case MOELINK_DTYPE_F16: return kernels::value_f16;
        default: return kernels::value_bf16;
    }
}

void Backend::no_fifos() {
    fail(MOELINK_ERR_UNSUPPORTED, "this manager has no routing of its own that tensors could follow; make one of MOELINK_MANAGER_TWO_SIDED");
}

void check_launch(kernels::cuda::Result result, const char *what) {
    if (result == 0) return;
    moelink_status status = MOELINK_ERR_DEVICE;
    if (result == 1 || result == 400) status = MOELINK_ERR_INVALID_ARGUMENT;      // cudaErrorInvalidValue, ...ResourceHandle
    if (result >= 900 && result < 910) status = MOELINK_ERR_INVALID_STATE;        // cudaErrorStreamCapture...
    fail(status, "{}: {}", what, kernels::cuda::error_text(result));
}

}  // namespace moelink

const char *moelink_manager_kind_name(int32_t kind) {
    const moelink::ManagerKind *row = moelink::find_kind(kind);
    return row != nullptr ? row->name : "unknown";
}

moelink_status moelink_manager_kind_describe(int32_t kind, int32_t device, char *text, uint64_t bytes) {
    using namespace moelink;
    return guard("moelink_manager_kind_describe", [&]() -> moelink_status {
        not_null(text, "text");
        const ManagerKind *row = find_kind(kind);
        if (row == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no manager kind {}", kind);
        if (device != MOELINK_DEVICE_HOST && device != MOELINK_DEVICE_CUDA) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "device is {}, must be MOELINK_DEVICE_HOST or MOELINK_DEVICE_CUDA", device);
        }
        std::string why;
        moelink_status status = row->available(device, &why);
        std::string line = status == MOELINK_OK ? row->what : fmt::format("{}; not here: {}", row->what, why);
        if (!write_text(line, text, bytes)) fail(MOELINK_ERR_TOO_SMALL, "the text needs {} bytes, {} were given", line.size() + 1, bytes);
        return status;
    });
}
