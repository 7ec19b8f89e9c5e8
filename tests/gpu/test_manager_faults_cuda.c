/* The tests of tests/ranks/test_manager_faults.c, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_manager_faults.c"
