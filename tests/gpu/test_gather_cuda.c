/* The gathering manager's tests of tests/ranks, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_gather.c"
