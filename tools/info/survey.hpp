// What moelink-info shows, as one JSON document.
#pragma once

#include <nlohmann/json.hpp>

namespace info {

// Keys: version, devices, devices_note, peers, libraries, providers, managers. Asks only what a machine without a GPU can
// answer too; nothing here fails because a GPU or a library is missing.
nlohmann::json survey();

}  // namespace info
