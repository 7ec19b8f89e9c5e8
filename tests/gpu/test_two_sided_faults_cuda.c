/* Rounds of a two-sided manager that are lost, on GPUs. */
#define TEST_DEVICE MOELINK_DEVICE_CUDA
#include "../ranks/test_two_sided_faults.c"
