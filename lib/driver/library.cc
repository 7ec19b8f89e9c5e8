#include "driver/library.hpp"

#include "base/error.hpp"

#include <cstdlib>

#include <dlfcn.h>
#include <link.h>

namespace moelink {

Library::Library(std::initializer_list<const char *> names) {
    std::string why = "no name was given";
    for (const char *name : names) {
        handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (handle_ != nullptr) {
            link_map *map = nullptr;
            bool known = dlinfo(handle_, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr;
            known = known && map->l_name != nullptr && *map->l_name != '\0';
            file_ = known ? map->l_name : name;
            return;
        }
        const char *text = dlerror();
        why = text != nullptr ? text : fmt::format("{} cannot be opened", name);
    }
    fail(MOELINK_ERR_NO_DRIVER, "{}", why);
}

Library Library::named(const char *variable, const char *name) {
    const char *path = std::getenv(variable);
    return Library({path != nullptr && *path != '\0' ? path : name});
}

void *Library::symbol(const char *name) const {
    void *found = dlsym(handle_, name);
    if (found == nullptr) fail(MOELINK_ERR_NO_DRIVER, "{} has no {}; a newer version is needed", file_, name);
    return found;
}

}  // namespace moelink
