// UCX, looked up at run time: MOELINK_UCX_LIBRARY (a path), else libucp.so.0. Its types come from its headers, which a build may lack.
#pragma once

#include "base/error.hpp"

#include <string>

#if MOELINK_UCX
#include <ucp/api/ucp.h>
#endif

namespace moelink {

// "1.13.1", and the file that it was loaded from. Both throw Error NO_DRIVER with the reason.
std::string ucx_version();
std::string ucx_file();

#if MOELINK_UCX

struct Ucx {
    decltype(&ucp_get_version_string) version_string = nullptr;
    decltype(&ucp_config_read) config_read = nullptr;
    decltype(&ucp_config_release) config_release = nullptr;
    decltype(&ucp_init_version) init_version = nullptr;
    decltype(&ucp_cleanup) cleanup = nullptr;
    decltype(&ucp_context_query) context_query = nullptr;
    decltype(&ucp_worker_create) worker_create = nullptr;
    decltype(&ucp_worker_destroy) worker_destroy = nullptr;
    decltype(&ucp_worker_get_address) worker_get_address = nullptr;
    decltype(&ucp_worker_release_address) worker_release_address = nullptr;
    decltype(&ucp_worker_progress) worker_progress = nullptr;
    decltype(&ucp_ep_create) ep_create = nullptr;
    decltype(&ucp_ep_print_info) ep_print_info = nullptr;
    decltype(&ucp_ep_rkey_unpack) ep_rkey_unpack = nullptr;
    decltype(&ucp_rkey_destroy) rkey_destroy = nullptr;
    decltype(&ucp_rkey_pack) rkey_pack = nullptr;
    decltype(&ucp_rkey_buffer_release) rkey_buffer_release = nullptr;
    decltype(&ucp_mem_map) mem_map = nullptr;
    decltype(&ucp_mem_unmap) mem_unmap = nullptr;
    decltype(&ucp_mem_query) mem_query = nullptr;
    decltype(&ucp_get_nbx) get = nullptr;
    decltype(&ucp_request_check_status) request_status = nullptr;
    decltype(&ucp_request_free) request_free = nullptr;
    decltype(&ucs_status_string) status_string = nullptr;
    std::string file;
};

// Throws Error NO_DRIVER with the loader's text. Any thread. Loading it starts nothing and changes no signal handler, but UCX
// itself may let other processes of the user trace this one, which is how it reads their memory on one host.
const Ucx &ucx();

// Throws Error INTERNAL for everything but success.
void check_ucx(ucs_status_t status, const char *what);

#endif

}  // namespace moelink
