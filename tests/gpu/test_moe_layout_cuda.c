/* The layouts of tests/ranks, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_moe_layout.c"
