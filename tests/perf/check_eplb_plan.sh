#!/usr/bin/env bash
# Usage: check_eplb_plan.sh MOELINK_PERF LOAD_FILE PLOT
# Plans from real loads: the figures are those of the maps, computed anew; saved plans and traces go on where they ended; bad files are
# refused with their place; and the picture is drawn where matplotlib is installed.
set -euo pipefail
perf=$1
loads=$2
plot=$3
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

# plan ARGUMENT...
plan() { "$perf" eplb-plan --repeat 1 --threads 1 "$@" >"$out/log" 2>&1; }

plan --loads "$loads" --ranks 8 --slots 408 --expert-bytes 1000 --replay --json "$out/replay.json" || fail "replay: exit code $?"
grep -q '^chinese  *0\.[0-9]*  *0\.9[0-9]* ' "$out/log" || fail "replay: no line for a topic"

# Line by line, each from the plan that the line before left: the same plans as the replay's.
topics=$(cut -d, -f1 "$loads")
from=()
number=0
for topic in $topics; do
    grep "^$topic," "$loads" >"$out/$topic.csv"
    plan --loads "$out/$topic.csv" --ranks 8 --slots 408 "${from[@]}" --save "$out/$number.plan" --json "$out/$number.json" ||
        fail "$topic: exit code $?"
    from=(--from "$out/$number.plan")
    number=$((number + 1))
done
plan --loads "$out/$topic.csv" --ranks 8 --slots 408 "${from[@]}" --json "$out/again.json" || fail "the same loads again: exit code $?"
plan --loads "$loads" --ranks 8 --json "$out/all.json" || fail "all lines in one plan: exit code $?"

python3 - "$out" "$loads" <<'PYTHON'
import json, sys
out, loads = sys.argv[1:]
ranks, slots = 8, 408
lines = [line.strip().split(",") for line in open(loads, encoding="utf-8")]
replay = json.load(open(f"{out}/replay.json"))
assert replay["what"] == "eplb-plan" and replay["shape"]["slots"] == slots and len(replay["rows"]) == len(lines)

def balance(phy2log, load):
    sums = [0.0] * ranks
    for slot, expert in enumerate(phy2log):
        sums[slot * ranks // slots] += load[expert] / phy2log.count(expert) if expert >= 0 else 0
    return sum(sums) / ranks / max(sums)

def near(a, b):
    assert abs(a - b) < 1e-9, f"{a} is not {b}"

before = None
for number, (row, (topic, *counts)) in enumerate(zip(replay["rows"], lines)):
    text = open(f"{out}/{number}.plan", encoding="utf-8").read().splitlines()
    phy2log = [int(word) for word in text[7].split()[1:]]
    load = [float(count) for count in counts]
    assert row["step"] == topic and len(phy2log) == slots and set(range(len(load))) <= set(phy2log)
    near(row["balance_after"], balance(phy2log, load))
    assert row["balance_after"] <= row["balance_bound"] + 1e-12 and row["balance_after"] >= 0.98
    if before is None:
        assert row["balance_before"] is None and row["copies"] == 0
    else:
        near(row["balance_before"], balance(before, load))
        each = slots // ranks
        new = [set(phy2log[r * each:(r + 1) * each]) - set(before[r * each:(r + 1) * each]) for r in range(ranks)]
        assert row["copies"] == sum(map(len, new)) and 0 < row["copies"] < row["reference"]["copies"]
    assert row["bytes"] == 1000 * row["copies"] and row["layers"][0]["balance_after"] == row["balance_after"]
    alone = json.load(open(f"{out}/{number}.json"))["rows"][0]
    assert alone["balance_after"] == row["balance_after"] and alone["copies"] == row["copies"]
    before = phy2log
again = json.load(open(f"{out}/again.json"))["rows"][0]
assert again["copies"] == 0 and again["balance_before"] == again["balance_after"] == alone["balance_after"]
everything = json.load(open(f"{out}/all.json"))
assert everything["shape"]["slots"] == 432 and len(everything["rows"]) == 1 and everything["rows"][0]["step"] == "all 6 steps"
PYTHON

# refused TEXT PART ARGUMENT...: exit code 2, and the part in what is said
refused() {
    local what=$1 part=$2 status=0
    shift 2
    plan "$@" || status=$?
    [ "$status" -eq 2 ] && grep -qF -- "$part" "$out/log" || fail "$what: exit code $status, must be 2, with \"$part\""
}
printf 'a,1,2\nb,3,x4\n' >"$out/bad.csv"
refused "a word among the loads" "bad.csv:2:5: \"x4\" is no load" --loads "$out/bad.csv" --ranks 1
printf 'a,1,2\nb,3\n' >"$out/bad.csv"
refused "a line that is too short" "bad.csv:2:4: 1 loads, and the first line has 2" --loads "$out/bad.csv" --ranks 1
refused "no file" "No such file" --loads "$out/none.csv" --ranks 8
refused "slots that ranks do not divide" "407" --loads "$loads" --ranks 8 --slots 407
refused "another plan's shape" "408 slots; the loads and --slots make" --loads "$loads" --ranks 8 --slots 416 --from "$out/0.plan"
sed 's/^map 1/map 2/;t;s/^map [0-9]*/map 1/' "$out/0.plan" >"$out/bad.plan"
refused "a damaged plan" "bad.plan:9:10: the checksum" --loads "$loads" --ranks 8 --slots 408 --from "$out/bad.plan"
refused "JSON that cannot be written" "cannot be written" --loads "$loads" --ranks 8 --json /nonexistent/plan.json

status=0
"$plot" "$out/replay.json" -o "$out/replay.png" >"$out/log" 2>&1 || status=$?
if grep -q 'matplotlib is missing' "$out/log"; then
    echo "no picture: $(cat "$out/log")"
else
    [ "$status" -eq 0 ] && head -c 8 "$out/replay.png" | grep -q PNG || fail "the picture: exit code $status"
    echo '{"rows": []}' >"$out/other.json"
    if "$plot" "$out/other.json" -o "$out/other.png" >"$out/log" 2>&1 || ! grep -q 'nothing in it to draw' "$out/log"; then
        fail "a file without a picture"
    fi
fi
echo "plans, files and the picture are as they should be"
