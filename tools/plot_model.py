"""Picture of moelink-perf model, for tools/plot: modelled times over the batch size, beside what was measured on two ranks."""

import math

from plot_pair import OURS, dress

GROUPS = ("#c05621", "#8e5ea2", "#2f8f83", "#b8860b", "#c71585", "#556b2f", "#708090", "#a0522d")
OPERATIONS = (("pair", "pair"), ("dispatch", "dispatch, from idle"), ("combine", "combine, from idle"))


def holds_model(document):
    return document.get("what") == "model" and len({row.get("tokens") for row in document.get("rows", [])}) > 1


def text_of_errors(errors):
    """Of the points that had no part in a fit."""
    parts = []
    for key, name in (("tokens_left_out", "a batch size left out"), ("slice_left_out", "a slice left out")):
        if errors[key]["points"]:
            parts.append(f"{name}: median {errors[key]['median']:.1%}, worst {errors[key]['worst']:+.1%}")
    for group in errors["larger_groups"]:
        parts.append(f"EP{group['ranks']} measured: median {group['median']:.1%}, worst {group['worst']:+.1%}")
    return "error of the model, " + "\n".join(parts) if parts else "too few points to leave some out"


def plot_model(pyplot, document):
    """One panel an operation, log-log: dashed lines are modelled, points are measured."""
    rows, shape = document["rows"], document["shape"]
    routing = rows[0]["routing"]
    rows = [row for row in rows if row["routing"] == routing]
    groups = list(dict.fromkeys(row["ranks"] for row in rows))
    same = [row for row in document["measured"] if row["slice_of"] == 0 and row["routing"] == routing
            and all(row[key] == shape[key] for key in ("hidden", "topk", "experts", "dtype"))]
    measured = list(dict.fromkeys(sorted(row["ranks"] for row in same)))
    sizes = sorted({row["tokens"] for row in rows})
    figure, panels = pyplot.subplots(1, 3, figsize=(16, 6.2), sharey=True)
    colors = {ranks: GROUPS[i % len(GROUPS)] for i, ranks in enumerate(groups)}
    for axes, (key, title) in zip(panels, OPERATIONS):
        for ranks in groups:
            part = sorted((row["tokens"], row[f"{key}_us"]) for row in rows if row["ranks"] == ranks)
            axes.plot(*zip(*part), color=colors[ranks], linestyle="--", linewidth=1.6, label=f"EP{ranks}, modelled")
        for ranks in measured:
            part = sorted((row["tokens"], row[f"{key}_us"]) for row in same if row["ranks"] == ranks)
            axes.plot(*zip(*part), color=colors.get(ranks, OURS), linestyle="-" if ranks == 2 else "", marker="o", linewidth=2.2,
                      label=f"EP{ranks}, measured")
        times = [row[f"{key}_us"] for row in rows + same]
        axes.set_ylim(bottom=10 ** (math.floor(2 * math.log10(min(times))) / 2) if min(times) > 0 else None)
        axes.set_title(title, fontsize="medium")
        dress(axes, sizes, "tokens on each rank", log_times=True)
        axes.tick_params(axis="x", labelrotation=45 if len(sizes) > 8 else 0)
        axes.text(0.98, 0.02, text_of_errors(document["fits"][key]["errors"]), transform=axes.transAxes, ha="right", va="bottom",
                  fontsize="x-small", color="#444444", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    panels[0].set_ylabel("[us], p50, slowest rank")
    panels[0].legend(fontsize="small", loc="upper left", frameon=False)
    source = "" if document["sync_measured"] else "; flags to more than one peer not measured"
    figure.suptitle(f"MODELLED from two ranks: hidden {shape['hidden']} {shape['dtype']}, top-{shape['topk']} of {shape['experts']} experts, "
                    f"{routing} routing\nfitted on {document['machine']}, {document['calls']}, {document['date'][:10]}{source}", fontsize="medium")
    figure.tight_layout()
    return figure
