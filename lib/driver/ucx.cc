#include "driver/ucx.hpp"

#include "driver/kept_signals.hpp"
#include "driver/library.hpp"


namespace moelink {

#if MOELINK_UCX

namespace {

Library open_library() {
    const KeptSignals signals;
    return Library::named("MOELINK_UCX_LIBRARY", "libucp.so.0");
}

Ucx load() {
    Library library = open_library();
    Ucx table;
    table.file = library.file();
    library.find(table.version_string, "ucp_get_version_string");
    library.find(table.config_read, "ucp_config_read");
    library.find(table.config_release, "ucp_config_release");
    library.find(table.init_version, "ucp_init_version");
    library.find(table.cleanup, "ucp_cleanup");
    library.find(table.context_query, "ucp_context_query");
    library.find(table.worker_create, "ucp_worker_create");
    library.find(table.worker_destroy, "ucp_worker_destroy");
    library.find(table.worker_get_address, "ucp_worker_get_address");
    library.find(table.worker_release_address, "ucp_worker_release_address");
    library.find(table.worker_progress, "ucp_worker_progress");
    library.find(table.ep_create, "ucp_ep_create");
    library.find(table.ep_print_info, "ucp_ep_print_info");
    library.find(table.ep_rkey_unpack, "ucp_ep_rkey_unpack");
    library.find(table.rkey_destroy, "ucp_rkey_destroy");
    library.find(table.rkey_pack, "ucp_rkey_pack");
    library.find(table.rkey_buffer_release, "ucp_rkey_buffer_release");
    library.find(table.mem_map, "ucp_mem_map");
    library.find(table.mem_unmap, "ucp_mem_unmap");
    library.find(table.mem_query, "ucp_mem_query");
    library.find(table.get, "ucp_get_nbx");
    library.find(table.request_status, "ucp_request_check_status");
    library.find(table.request_free, "ucp_request_free");
    library.find(table.status_string, "ucs_status_string");
    return table;
}

}  // namespace

const Ucx &ucx() {
    static const auto *loaded = new Loaded<Ucx>(&load);
    return loaded->get();
}

std::string ucx_version() { return ucx().version_string(); }

std::string ucx_file() { return ucx().file; }

void check_ucx(ucs_status_t status, const char *what) {
    if (status == UCS_OK) return;
    fail(MOELINK_ERR_INTERNAL, "{}: {}", what, ucx().status_string(status));
}

#else

std::string ucx_version() { fail(MOELINK_ERR_NO_DRIVER, "this MoELink was built without UCX's headers"); }

std::string ucx_file() { return ucx_version(); }

#endif

}  // namespace moelink
