#include <moelink/version.h>

// MOELINK_BUILT_WITH comes from the build: "host only", or the CUDA version and architectures.
#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)

int32_t moelink_version(void) { return MOELINK_VERSION; }

const char *moelink_version_string(void) {
    return TEXT(MOELINK_VERSION_MAJOR) "." TEXT(MOELINK_VERSION_MINOR) "." TEXT(MOELINK_VERSION_PATCH) " (" MOELINK_BUILT_WITH ")";
}
