/* Experts of many tensors, as in tests/ranks, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_eplb_tensors.c"
