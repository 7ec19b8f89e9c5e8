"""Pictures of moelink-perf pair, for tools/plot: the pair's time over the batch size, and over the budget of multiprocessors."""

OURS, LIVE, LIMIT = "#2b6cb0", "#c05621", "#8a8f98"
PEERS = ("#6b8e23", "#8e5ea2", "#b8860b", "#2f8f83", "#a0522d", "#708090", "#c71585", "#556b2f", "#4682b4", "#cd5c5c", "#20603d", "#7f7f00")
SAME_RATE = 0.9
OPERATIONS = (("dispatch", OURS, "o"), ("combine", LIVE, "s"))


def budget_of(row):
    return row.get("sm_budget", 0)


def holds_pairs(document):
    return document.get("program") == "moelink-perf" and "settings" in document and len({row.get("tokens") for row in document.get("rows", [])}) > 1


def holds_budgets(document):
    return document.get("program") == "moelink-perf" and "settings" in document and len({budget_of(row) for row in document.get("rows", [])}) > 2


def describe(document):
    settings = document["settings"]
    devices = document["devices"]
    kind = devices[0].split(" #")[0]
    calls = "graph replay" if all(row["graph"] for row in document["rows"]) else "eager calls"
    sent = settings.get("send", "rows")
    sent = "" if sent == "rows" else f" sent as {sent}"
    part = f", one link of {settings['slice_of']} ranks" if settings.get("slice_of") else ""
    return (f"hidden {settings['hidden']} {settings['dtype']}{sent}, top-{settings['topk']} of {settings['experts']} experts{part}\n"
            f"{len(devices)} ranks on {kind}, {document['date'][:10]}, {calls}")


def peers_of(document):
    """{library: {tokens: us}} and where it was measured: from the run's own comparison, and from document["peers"], tables of
    the form that moelink-perf's --compare reads."""
    found, machines = {}, []
    for one in document.get("compare", []):
        found.setdefault(one["lib"], {})[one["tokens"]] = one["their_pair_us"]
        if one["measured_elsewhere"] not in machines:
            machines.append(one["measured_elsewhere"])
    settings = document["settings"]
    sent = settings["dtype"] if settings.get("send", "rows") == "rows" else "fp8"
    for peers in document.get("peers", []):
        shape = peers["meta"]["shape"]
        ours = {"hidden": settings["hidden"], "top_k": settings["topk"], "experts": settings["experts"], "ranks": settings["ranks"]}
        wrong = [f"{key} {shape[key]}, not {value}" for key, value in ours.items() if shape.get(key, value) != value]
        if wrong:
            raise ValueError(f"peers of another shape: {'; '.join(wrong)}")
        machine = f"{peers['meta']['machine']}, {peers['meta'].get('date', 'no date')}"
        if machine not in machines:
            machines.append(machine)
        for row in peers["rows"]:
            if row["dtype"] == sent and "pair_us" in row:
                found.setdefault(row["lib"], {})[row["tokens"]] = row["pair_us"]
    return found, machines


def dress(axes, values, name, log_times):
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel(name)
    if log_times:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = [base * 10**power for power in range(-1, 7) for base in (1, 2, 5)]
        shown = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    else:
        axes.set_ylim(bottom=0)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_pairs(pyplot, document):
    """Log-log, from the JSON of one run."""
    figure, axes = pyplot.subplots(figsize=(9, 6.5))
    rows = [row for row in document["rows"] if budget_of(row) == budget_of(document["rows"][0])]
    sizes = sorted({row["tokens"] for row in rows})
    peers, machines = peers_of(document)
    for i, (lib, times) in enumerate(sorted(peers.items())):
        points = [(tokens, times[tokens]) for tokens in sizes if tokens in times]
        if points:
            axes.plot(*zip(*points), color=PEERS[i % len(PEERS)], linewidth=1, linestyle="--" if len(points) > 1 else "",
                      marker="o", markersize=3.5, label=f"{lib} *")
    routings = list(dict.fromkeys(row["routing"] for row in rows))
    for i, routing in enumerate(routings):
        part = [row for row in rows if row["routing"] == routing]
        style = ("-", "-.", ":")[i % 3]
        tokens = [row["tokens"] for row in part]
        if all("baseline_pair_us_p50" in row for row in part):
            axes.plot(tokens, [row["baseline_pair_us_p50"] for row in part], color=LIVE, linestyle=style, marker="s", markersize=4,
                      label=f"all-gather + reduce-scatter, same run, {routing}")
        axes.plot(tokens, [row["pair_us_p50"] for row in part], color=OURS, linestyle=style, marker="o", linewidth=2.2,
                  label=f"MoELink {document['settings']['manager']}, {routing}")
    if all("bytes_us" in row for row in rows):
        part = [row for row in rows if row["routing"] == routings[0]]
        axes.plot([row["tokens"] for row in part], [row["bytes_us"] for row in part], color=LIMIT, linestyle=":", linewidth=2,
                  label=f"bytes that cross at {document['push_gbps']:.0f} GB/s, the push rate of this run")
    least = min([row["pair_us_p50"] for row in rows] + [us for times in peers.values() for us in times.values()])
    axes.set_ylim(bottom=least / 2)  # of the bytes' line the part that matters
    axes.set_title(f"Dispatch and combine: {describe(document)}", fontsize="medium")
    axes.set_ylabel("one pair [us], p50, slowest rank")
    dress(axes, sizes, "tokens on each rank", log_times=True)
    axes.legend(fontsize="x-small", loc="upper left", frameon=False)
    if machines:
        figure.text(0.01, 0.005, "* measured elsewhere: " + "; ".join(machines), fontsize="x-small", color="#444444")
        figure.subplots_adjust(bottom=0.12)
    return figure


def draw_budget_times(axes, limited, free):
    budgets = [budget_of(row) for row in limited]
    for name, color, marker in OPERATIONS:
        axes.plot(budgets, [row[f"{name}_us_p50"] for row in limited], color=color, marker=marker, label=name)
        if free is not None:
            most = free.get(f"{name}_blocks")
            used = f", {most} SMs" if most else ""
            axes.axhline(free[f"{name}_us_p50"], color=color, linestyle=":", label=f"{name} without a budget{used}")
    if free is not None:
        axes.axhline(free["dispatch_us_p50"] / SAME_RATE, color=LIMIT, linestyle="--",
                     label=f"dispatch at {SAME_RATE:.0%} of its rate without a budget")
    dress(axes, budgets, "multiprocessors that a kernel may use", log_times=False)
    axes.set_ylabel("from idle [us], p50, slowest rank")
    axes.legend(fontsize="x-small", frameon=False)


def draw_budget_rates(axes, limited, free, push_gbps):
    """An operation moves half of the bytes that a pair moves."""
    def share(row, name):
        return row["bytes_crossed"] / 2 / row[f"{name}_us_p50"] * 1e-3 / push_gbps

    budgets = [budget_of(row) for row in limited]
    for name, color, marker in OPERATIONS:
        axes.plot(budgets, [share(row, name) for row in limited], color=color, marker=marker, label=name)
        if free is not None:
            axes.axhline(share(free, name), color=color, linestyle=":", label=f"{name} without a budget")
    axes.axhline(1, color=LIMIT, linestyle="--", label=f"push rate of this run, {push_gbps:.0f} GB/s")
    dress(axes, budgets, "multiprocessors that a kernel may use", log_times=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("rows that cross: share of the push rate")
    axes.legend(fontsize="x-small", frameon=False, loc="lower right")


def plot_budgets(pyplot, document):
    """Dispatch and combine from idle over the number of multiprocessors that they may use, for each batch size; below, where the run
    measured the link, what share of it that is."""
    sizes = sorted({row["tokens"] for row in document["rows"]})
    push_gbps = document.get("push_gbps", 0)
    lines = 2 if push_gbps else 1
    figure, panels = pyplot.subplots(lines, len(sizes), figsize=(5.5 * len(sizes) + 1.5, 4.5 * lines + 0.5), squeeze=False)
    for column, tokens in enumerate(sizes):
        rows = [row for row in document["rows"] if row["tokens"] == tokens and row["routing"] == document["rows"][0]["routing"]]
        limited = sorted((row for row in rows if budget_of(row) > 0), key=budget_of)
        free = next((row for row in rows if budget_of(row) == 0), None)
        panels[0][column].set_title(f"{tokens} tokens on each rank", fontsize="medium")
        draw_budget_times(panels[0][column], limited, free)
        if push_gbps:
            draw_budget_rates(panels[1][column], limited, free, push_gbps)
    figure.suptitle(describe(document), fontsize="medium")
    figure.tight_layout()
    return figure
