#!/usr/bin/env bash
# Usage: check_model.sh MOELINK_PERF PLOT PUBLISHED
# From runs on the host to a modelled table: slices move one link's rows and are right, the figures of the JSON follow from its fits, points
# that were not fitted have their errors shown, all is labelled, and files that do not belong are refused.
set -euo pipefail
perf=$1
plot=$2
published=$3
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

# run NAME ARGUMENT...: writes NAME.json
run() {
    local name=$1
    shift
    "$perf" pair --device host --hidden 256 --topk 4 --experts 32 --iterations 2 --warmup 1 --check --timeout 60 --json "$out/$name.json" \
        "$@" >"$out/log" 2>&1 || fail "$name: exit code $?"
}
run whole --ranks 2 --tokens 1,8,64,256,1024
run slice4 --ranks 2 --tokens 8,64,256,1024 --slice-of 4
run slice5 --ranks 2 --tokens 8,64,1024 --slice-of 5 --threads
grep -q 'of a group of 5 ranks' "$out/log" || fail "the table of a slice does not say so"
run four --ranks 4 --tokens 8,64,256
run budgets --ranks 2 --tokens 8 --sm-budget 1,0

# refused TEXT ARGUMENT...: exit code 2 and the text
refused() {
    local text=$1 status=0
    shift
    "$perf" "$@" >"$out/log" 2>&1 || status=$?
    [ "$status" -eq 2 ] && grep -qF -- "$text" "$out/log" || fail "$*: exit code $status, must be 2 with '$text'"
}
files=("$out/whole.json" "$out/slice4.json" "$out/slice5.json" "$out/four.json" "$out/budgets.json")
cat >"$out/link.json" <<'JSON'
{"cuda": {"figures": [{"value": 2.0, "flags": 1}, {"value": 3.0, "flags": 11}, {"value": 5.0, "flags": 31}]}}
JSON
"$perf" model "${files[@]}" --link "$out/link.json" --published "$published" --hidden 256 --topk 4 --experts 32 --groups 4,8,32 \
    --tokens 1,64,1024 --json "$out/model.json" >"$out/log" 2>&1 || fail "the model: exit code $?"
for text in 'MODELLED, not measured' 'predicted: measured EP4' 'predicted: a slice left out' '1 rows with a budget' 'our times, MODELLED, over theirs'; do
    grep -qF -- "$text" "$out/log" || fail "the table does not have '$text'"
done
"$perf" model "${files[@]}" --hidden 256 --topk 4 --experts 32 --groups 32,2 --tokens 700,1024 --routing hot --json - >"$out/hot.json" ||
    fail "a skewed routing: exit code $?"

python3 - "$out" "$published" <<'PYTHON'
import json, sys
from math import comb
out, published_file = sys.argv[1:]
load = lambda name: json.load(open(f"{out}/{name}.json"))
whole, slice4, model, hot = load("whole"), load("slice4"), load("model"), load("hot")

def near(a, b, tolerance=1e-9):
    assert abs(a - b) <= tolerance * max(1, abs(b)), f"{a} is not {b}"

for row in slice4["rows"]:
    assert row["checked"] == "yes" and row["rows_own"] == 0 and 0 < row["rows_crossed"] == row["rows_sent"] <= row["tokens"]
near(slice4["rows"][-1]["rows_crossed"], 1024 * (1 - comb(24, 4) / comb(32, 4)), 0.1)
assert all(row["rows_own"] > 0 for row in whole["rows"])

assert model["what"] == "model" and model["modelled"] is True and all(row["modelled"] is True for row in model["rows"])
assert [(row["ranks"], row["tokens"]) for row in model["rows"]] == [(r, t) for r in (4, 8, 32) for t in (1, 64, 1024)]
assert any("1 rows with a budget" in note for note in model["notes"]) and not any("no --link" in note for note in model["notes"])
flags = {4: 2.2, 8: 2.6, 32: 5.0}
for row in model["rows"]:
    ranks, tokens, bytes_a_row = row["ranks"], row["tokens"], 2 * 256
    reach = 1 - comb(32 - 32 // ranks, 4) / comb(32, 4)
    crossed, own, sent = tokens * (ranks - 1) * reach, tokens * reach, tokens * ranks * reach
    near(row["rows_crossed"], crossed)
    local = {"dispatch": tokens + own, "combine": tokens + sent}
    local["pair"] = local["dispatch"] + local["combine"]
    for name in ("dispatch", "combine", "pair"):
        times = 2 if name == "pair" else 1
        lines = model["fits"][name]["lines"]
        line = lines[0] if tokens <= lines[0].get("most_tokens", 10**9) else lines[-1]
        us = lambda gbps, count: count * bytes_a_row / gbps * 1e-3 if gbps else 0
        near(row[f"{name}_us"], line["t0_us"] + times * flags[ranks] + us(line["link_gbps"], times * crossed) + us(line["local_gbps"], local[name]))
        near(row[f"{name}_us"], sum(row[f"{name}_parts_us"].values()))
for name in ("dispatch", "combine", "pair"):
    errors = model["fits"][name]["errors"]
    assert errors["in_fit"]["points"] == 13 == sum(line["points"] for line in model["fits"][name]["lines"])
    assert errors["tokens_left_out"]["points"] == 13 and errors["slice_left_out"]["points"] == 13
    assert [(one["ranks"], one["points"]) for one in errors["larger_groups"]] == [(4, 3)]
assert len(model["measured"]) == 16

names = [series["name"] for series in json.load(open(published_file))["series"]]
assert [series["name"] for series in model["published"]] == names
groups = [group for series in model["published"] for group in series["groups"]]
assert all(group["source"] and group["boundary"] and group["modelled_ours_over_theirs"]["median"] > 0 for group in groups)
predicted = [group for group in groups if group.get("used_in_fit") is False]
assert {group["ranks"] for group in predicted} >= {8, 16, 32, 64}
larger = next(group for group in predicted if group["ranks"] == 64 and group["operation"] == "dispatch")
assert larger["points"] == 6 and 0 < abs(larger["error"]["worst"]) < 1

assert [(row["ranks"], row["routing"]) for row in hot["rows"]] == [(32, "hot")] * 2 + [(2, "hot")] * 2
assert [note for note in model["notes"] if "evenly" in note] == []
assert any("no --link" in note for note in hot["notes"])
assert hot["rows"][0]["rows_crossed"] > 10 * 700, "31 ranks send nearly all of their tokens to the hot one"
near(hot["rows"][0]["rows_crossed"] / 700, hot["rows"][1]["rows_crossed"] / 1024)
PYTHON

status=0
"$plot" "$out/model.json" -o "$out/model.svg" >"$out/log" 2>&1 || status=$?
if grep -q 'matplotlib is missing' "$out/log"; then
    echo "matplotlib is not installed: no picture was drawn"
else
    [ "$status" -eq 0 ] && grep -qi 'modelled' "$out/model.svg" || fail "the picture: exit code $status, or it is not labelled"
fi

refused 'are too few' model "$out/budgets.json"
refused 'only 32 experts: not one a rank' model "${files[@]}" --experts 32 --groups 64
refused 'it is not what moelink-perf pair --json writes' model "$out/model.json"
refused 'no times of several flags' model "${files[@]}" --link <(echo '{"cuda": {"figures": []}}')
refused 'it is no file of published times' model "${files[@]}" --published "$out/link.json"
refused 'runs is required' model
run reference --ranks 2 --tokens 8 --manager reference
refused 'the model is of one-sided' model "$out/whole.json" "$out/reference.json"
run weighted --ranks 2 --tokens 8 --weighted
refused 'one fit is of one way to call' model "$out/whole.json" "$out/weighted.json"
sed 's/"rows_sent"/"rows_other"/' "$out/whole.json" >"$out/old.json"
refused 'an older moelink-perf wrote it' model "$out/old.json"
refused "two ranks' share of a larger group, and there are 3 ranks" pair --device host --ranks 3 --slice-of 8
refused '--slice-of is 64 but there are only 32 experts' pair --device host --ranks 2 --experts 32 --slice-of 64
refused 'excludes' pair --device host --ranks 2 --slice-of 8 --baseline
refused 'of a slice of 4 ranks' pair --device host --ranks 2 --hidden 256 --topk 4 --experts 32 --compare "$out/slice4.json"
refused 'another moelink-perf command' pair --device host --ranks 2 --compare "$out/model.json"
echo "slices are right, and the model says what follows from them, labelled"
