/* The two-sided manager in parts, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_two_sided.c"
