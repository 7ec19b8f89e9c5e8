/* The tests of tests/ranks/test_eplb_comm.c, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_eplb_comm.c"
