// moelink-info: what MoELink finds on this machine.
#include <cstdio>
#include <exception>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <moelink/moelink.h>

#include "survey.hpp"

namespace {

using nlohmann::json;

constexpr const char *examples = R"(
Examples:
  moelink-info
  moelink-info --json | jq .providers

A machine without a GPU is no error: what needs one is shown as absent, with the reason.
)";

std::string text_of(const json &value) {
    return value.get<std::string>();
}

void print_lines(const std::string &lines, const char *indent) {
    for (size_t from = 0; from < lines.size();) {
        const size_t end = std::min(lines.find('\n', from), lines.size());
        fmt::print("{}{}\n", indent, lines.substr(from, end - from));
        from = end + 1;
    }
}

void print_devices(const json &document) {
    fmt::print("\nGPUs\n");
    if (document["devices"].empty()) {
        fmt::print("  none: {}\n", text_of(document["devices_note"]));
        return;
    }
    for (const json &device : document["devices"]) {
        if (device.contains("error")) {
            fmt::print("  #{} cannot be described: {}\n", device["ordinal"].get<int>(), text_of(device["error"]));
            continue;
        }
        const int capability = device["compute_capability"];
        const int nvlinks = device["nvlinks"];
        fmt::print("  #{} {}  {:.1f} GiB, {} multiprocessors, compute capability {}.{}{}\n", device["ordinal"].get<int>(),
                   text_of(device["name"]), static_cast<double>(device["memory_bytes"].get<uint64_t>()) / (1u << 30),
                   device["multiprocessors"].get<int>(), capability / 10, capability % 10,
                   device["supported"].get<bool>() ? "" : " (no kernels for it)");
        fmt::print("     {}  {}\n", text_of(device["uuid"]), text_of(device["pci_bus_id"]));
        fmt::print("     NVLinks: {}; the driver says: fabric handles {}, POSIX file descriptors {}\n",
                   nvlinks < 0 ? std::string("unknown") : std::to_string(nvlinks),
                   device["fabric_attribute"].get<bool>() ? "yes" : "no",
                   device["posix_fd_attribute"].get<bool>() ? "yes" : "no");
    }
    fmt::print("\nPeer access (row can map column's memory)\n     ");
    const json &peers = document["peers"];
    for (size_t j = 0; j < peers.size(); ++j) {
        fmt::print("{:>4}", fmt::format("#{}", j));
    }
    fmt::print("\n");
    for (size_t i = 0; i < peers.size(); ++i) {
        fmt::print("  {:<3}", fmt::format("#{}", i));
        for (size_t j = 0; j < peers.size(); ++j) {
            fmt::print("{:>4}", i == j ? "-" : peers[i][j].is_null() ? "?" : peers[i][j] == 1 ? "yes" : "no");
        }
        fmt::print("\n");
    }
}

void print_all(const json &document) {
    fmt::print("MoELink {}\n", text_of(document["version"]));
    print_devices(document);
    fmt::print("\nLibraries looked up at run time\n");
    for (const json &library : document["libraries"]) {
        fmt::print("  {:<6} {:<4} {}\n", text_of(library["name"]), library["usable"].get<bool>() ? "yes" : "no",
                   text_of(library["text"]));
    }
    for (const json &trial : document["providers"]) {
        fmt::print("\nSymmetric memory on {}, tried with {} ranks as threads\n",
                   trial["device"] == "host" ? "the host device" : "GPUs", trial["ranks"].get<int>());
        if (trial.contains("error")) {
            print_lines(text_of(trial["error"]), "  not possible: ");
        } else {
            fmt::print("  would use {}\n", text_of(trial["chosen"]));
        }
        print_lines(trial.value("reasons", ""), "  ");
    }
    fmt::print("\nManagers\n");
    for (const json &manager : document["managers"]) {
        fmt::print("  {:<26} {:<5} {:<4} {}\n", text_of(manager["kind"]), text_of(manager["device"]),
                   manager["usable"].get<bool>() ? "yes" : "no", text_of(manager["text"]));
    }
    fmt::print("\nWhat stands for vLLM's --all2all-backend\n");
    for (const json &backend : document["all2all_backends"]) {
        fmt::print("  {:<28} {:<26} {:<14} {}\n", text_of(backend["name"]), text_of(backend["manager"]), text_of(backend["layout"]),
                   backend["same"].get<bool>() ? "the same" : text_of(backend["reason"]));
    }
}

}  // namespace

int main(int argc, char **argv) {
    CLI::App app("Shows what MoELink finds on this machine: version, GPUs, peer access, libraries, memory providers, managers, and what stands for other libraries' back ends.");
    bool as_json = false;
    app.add_flag("--json", as_json, "one JSON document with the keys version, devices, peers, libraries, providers, managers, all2all_backends");
    app.set_version_flag("--version", moelink_version_string());
    app.footer(examples);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
    try {
        const json document = info::survey();
        if (as_json) {
            fmt::print("{}\n", document.dump(2, ' ', false, json::error_handler_t::replace));
        } else {
            print_all(document);
        }
        return 0;
    } catch (const std::exception &error) {
        fmt::print(stderr, "moelink-info: {}\n", error.what());
        return 1;
    }
}
