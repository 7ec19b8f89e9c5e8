// moelink-perf: what MoELink does on this machine, checked and timed, and what the machine itself can do.
#include <cstdio>
#include <stdexcept>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <moelink/moelink.h>

#include "commands.hpp"
#include "eplb.hpp"
#include "eplb_plan.hpp"
#include "launcher.hpp"
#include "link.hpp"
#include "litmus.hpp"
#include "model.hpp"
#include "pair.hpp"
#include "stress.hpp"

int main(int argc, char **argv) {
    CLI::App app("Measures MoELink and the machine that it runs on.");
    app.require_subcommand(1);
    app.set_version_flag("--version", moelink_version_string());
    app.footer(
        "'moelink-perf pair --help' and so on have examples. What each figure means is below each table.\n"
        "See also: moelink-info");
    perf::PairOptions pair;
    perf::StressOptions stress;
    perf::LinkOptions link;
    perf::LitmusOptions litmus;
    perf::EplbPlanOptions eplb_plan;
    perf::EplbOptions eplb;
    perf::ModelOptions model;
    CLI::App *pair_command = app.add_subcommand("pair", "dispatch and combine of one manager: checked, timed, in a table");
    CLI::App *stress_command = app.add_subcommand("stress", "a great number of random pairs, every value checked on the device");
    CLI::App *link_command = app.add_subcommand("link", "the machine's own limits: copies, links, flags; no MoELink involved");
    CLI::App *litmus_command =
        app.add_subcommand("litmus", "small programs on two GPUs: which orders of memory accesses come about; no MoELink involved");
    CLI::App *eplb_plan_command = app.add_subcommand("eplb-plan", "expert placement planned from loads in a file: balance, copies, time");
    CLI::App *eplb_command = app.add_subcommand("eplb", "traffic that changes: experts planned and moved, every byte checked, timed");
    CLI::App *model_command = app.add_subcommand("model", "MODELLED times of larger groups, from pair runs on two ranks");
    CLI::App *rank_command = app.add_subcommand("rank", "")->group("");
    perf::add_pair(*pair_command, pair);
    perf::add_stress(*stress_command, stress);
    perf::add_link(*link_command, link);
    perf::add_litmus(*litmus_command, litmus);
    perf::add_eplb_plan(*eplb_plan_command, eplb_plan);
    perf::add_eplb(*eplb_command, eplb);
    perf::add_model(*model_command, model);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        return app.exit(error) == 0 ? 0 : 2;
    }

    std::string command = "moelink-perf";
    for (int i = 1; i < argc; ++i) {
        command += std::string(" ") + argv[i];
    }
    try {
        if (rank_command->parsed()) {
            return perf::rank_main();
        }
        if (eplb_plan_command->parsed()) {
            return perf::run_eplb_plan(eplb_plan, command);
        }
        if (eplb_command->parsed()) {
            return perf::run_eplb(eplb, command);
        }
        if (model_command->parsed()) {
            return perf::run_model(model, command);
        }
        if (stress_command->parsed()) {
            return perf::run_stress(stress, command);
        }
        if (litmus_command->parsed()) {
            return perf::run_litmus(litmus, command);
        }
        return link_command->parsed() ? perf::run_link(link, command) : perf::run_pair(pair, command);
    } catch (const std::exception &error) {
        fmt::print(stderr, "moelink-perf: {}\n", error.what());
        return 2;
    }
}
