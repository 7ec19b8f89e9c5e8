// What the rest of the library asks about devices without knowing CUDA.
#pragma once

namespace moelink {

// CUDA devices that the library has kernels for (compute capability 9.0 or more); 0 without a driver.
int cuda_device_count_usable() noexcept;

// Ordinal of the calling thread's current CUDA device; 0 when it has none.
int cuda_current_ordinal() noexcept;

}  // namespace moelink
