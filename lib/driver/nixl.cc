#include "driver/nixl.hpp"

#include "driver/kept_signals.hpp"
#include "driver/library.hpp"

#include <cstring>

namespace moelink {

namespace {

Library open_library() {
    const KeptSignals signals;
    return Library::named("MOELINK_NIXL_LIBRARY", "libnixl_capi.so");
}

// It has no version to ask for, so what tells whether the declarations fit is asked for instead.
void check_numbers(const Nixl &table) {
    if (table.is_stub()) fail(MOELINK_ERR_NO_DRIVER, "{} is a stub, without NIXL behind it", table.file);
    const std::pair<int, const char *> memories[] = {{nixl_dram, "DRAM"}, {nixl_vram, "VRAM"}};
    for (const auto &[number, wanted] : memories) {
        const char *name = nullptr;
        if (table.memory_name(number, &name) == 0 && name != nullptr && std::strcmp(name, wanted) == 0) continue;
        fail(MOELINK_ERR_NO_DRIVER, "{} is of a release of NIXL with other numbers: its memory {} is not {}", table.file, number, wanted);
    }
}

Nixl load() {
    Library library = open_library();
    Nixl table;
    table.file = library.file();
    library.find(table.is_stub, "nixl_capi_is_stub");
    library.find(table.memory_name, "nixl_capi_mem_type_to_string");
    library.find(table.create_agent, "nixl_capi_create_configured_agent");
    library.find(table.destroy_agent, "nixl_capi_destroy_agent");
    library.find(table.plugin_params, "nixl_capi_get_plugin_params");
    library.find(table.destroy_memories, "nixl_capi_destroy_mem_list");
    library.find(table.destroy_params, "nixl_capi_destroy_params");
    library.find(table.create_backend, "nixl_capi_create_backend");
    library.find(table.destroy_backend, "nixl_capi_destroy_backend");
    library.find(table.create_regions, "nixl_capi_create_reg_dlist");
    library.find(table.add_region, "nixl_capi_reg_dlist_add_desc");
    library.find(table.destroy_regions, "nixl_capi_destroy_reg_dlist");
    library.find(table.register_memory, "nixl_capi_register_mem");
    library.find(table.deregister_memory, "nixl_capi_deregister_mem");
    library.find(table.local_metadata, "nixl_capi_get_local_partial_md");
    library.find(table.load_metadata, "nixl_capi_load_remote_md");
    library.find(table.drop_metadata, "nixl_capi_invalidate_remote_md");
    library.find(table.connect, "nixl_capi_agent_make_connection");
    library.find(table.create_pieces, "nixl_capi_create_xfer_dlist");
    library.find(table.add_piece, "nixl_capi_xfer_dlist_add_desc");
    library.find(table.destroy_pieces, "nixl_capi_destroy_xfer_dlist");
    library.find(table.create_request, "nixl_capi_create_xfer_req");
    library.find(table.post_request, "nixl_capi_post_xfer_req");
    library.find(table.request_status, "nixl_capi_get_xfer_status");
    library.find(table.release_request, "nixl_capi_release_xfer_req");
    library.find(table.destroy_request, "nixl_capi_destroy_xfer_req");
    check_numbers(table);
    return table;
}

}  // namespace

const Nixl &nixl() {
    static const auto *loaded = new Loaded<Nixl>(&load);
    return loaded->get();
}

void check_nixl(NixlStatus status, const char *what) {
    if (status != 0) fail(MOELINK_ERR_INTERNAL, "{}: NIXL's status {} (NIXL_LOG_LEVEL=INFO makes it say more)", what, status);
}

}  // namespace moelink
