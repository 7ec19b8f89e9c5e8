/* The choice of copies of tests/ranks, on GPUs, beside the host's. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_eplb_route.c"
