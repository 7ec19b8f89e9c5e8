#!/usr/bin/env bash
# Usage: check_options.sh MOELINK_PERF PLOT
# What a pair run adds on demand is in its table and its JSON, and the ratios to other files are those of the figures.
set -euo pipefail
perf=$1
plot=$2
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

# must_refuse TEXT ARGUMENT...: exit code 2 and the text.
must_refuse() {
    local text=$1 status=0
    shift
    "$perf" pair --device host "$@" >"$out/log" 2>&1 || status=$?
    [ "$status" -eq 2 ] && grep -qF -- "$text" "$out/log" || fail "$*: exit code $status, must be 2 with '$text'"
}

cat >"$out/peers.json" <<'JSON'
{"meta": {"machine": "a machine of straw", "date": "2026-01-02",
          "shape": {"hidden": 1024, "top_k": 22, "experts": 512, "ranks": 2, "routing": "uniform"}},
 "rows": [{"lib": "slow", "dtype": "bf16", "tokens": 3, "pair_us": 1e9},
          {"lib": "fast", "dtype": "bf16", "tokens": 5, "pair_us": 1e-3},
          {"lib": "of another type", "dtype": "fp8", "tokens": 5, "pair_us": 1},
          {"lib": "without pairs", "dtype": "bf16", "tokens": 5}]}
JSON
common=(--device host --ranks 2 --shape nemotron-3 --iterations 2 --warmup 1 --timeout 60)

"$perf" pair "${common[@]}" --tokens 3,5 --routing uniform --routing hot --jitter --baseline --copy-out --check \
    --compare "$out/peers.json" --json "$out/first.json" >"$out/log" 2>&1 || fail "the full run: exit code $?"
grep -q 'MEASURED ELSEWHERE: a machine of straw, 2026-01-02' "$out/log" || fail "does not say where the others were measured"
"$perf" pair "${common[@]}" --sweep --sm-budget 0,4 --compare "$out/first.json" --compare "$out/peers.json" --json "$out/second.json" \
    >"$out/log" 2>&1 || fail "the sweep: exit code $?"
for kind in one-sided reference; do
    "$perf" pair "${common[@]}" --manager "$kind" --tokens 9 --weighted --mask 0.1 --check --json "$out/weighted.json" >"$out/log" 2>&1 ||
        fail "weighted combine, $kind: exit code $?"
done
python3 - "$out/first.json" "$out/second.json" <<'PYTHON'
import json, sys
first, second = (json.load(open(path)) for path in sys.argv[1:])
assert first["ok"] and first["settings"]["hidden"] == 1024 and first["settings"]["topk"] == 22 and first["settings"]["experts"] == 512
assert [(row["routing"], row["tokens"]) for row in first["rows"]] == [("uniform", 3), ("uniform", 5), ("hot", 3), ("hot", 5)]
for row in first["rows"]:
    assert row["stamped_us_max"] >= row["stamped_us_p99"] >= row["stamped_us_p50"] > 0 and row["stamped_samples"] >= 20
    assert row["baseline_pair_us_p50"] > 0 and row["memcpy_us"] > 0 and row["pair_over_memcpy"] > 0
compared = first["compare"]
assert [(one["lib"], one["tokens"], one["routing"]) for one in compared] == [("slow", 3, "uniform"), ("fast", 5, "uniform")], compared
for one in compared:
    ours = next(row for row in first["rows"] if row["tokens"] == one["tokens"] and row["routing"] == "uniform")["pair_us_p50"]
    assert abs(one["ratio"] / (ours / one["their_pair_us"]) - 1) < 1e-9 and "straw" in one["measured_elsewhere"]
sizes = [1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096]
assert [(row["tokens"], row["sm_budget"]) for row in second["rows"]] == [(size, budget) for size in sizes for budget in (0, 4)]
assert "compare" not in second, "no size of the sweep is in the other files"
PYTHON

# Pictures, where matplotlib is installed; the second file has two budgets, which is too few for a picture of them.
"$perf" pair "${common[@]}" --tokens 4 --sm-budget 1,2,0 --json "$out/budgets.json" >"$out/log" 2>&1 || fail "budgets: exit code $?"
sed 's/^{/{"push_gbps": 10,/' "$out/budgets.json" >"$out/shares.json" # as where a link was measured
for name in first second budgets shares; do
    status=0
    "$plot" "$out/$name.json" --peers "$out/peers.json" -o "$out/$name.svg" >"$out/log" 2>&1 || status=$?
    if grep -q 'matplotlib is missing' "$out/log"; then
        echo "matplotlib is not installed: no picture was drawn"
        break
    fi
    [ "$status" -eq 0 ] && [ -s "$out/$name.svg" ] || fail "the picture of $name.json: exit code $status"
    if grep -q 'share of the push rate' "$out/$name.svg"; then shares=yes; else shares=no; fi
    [ "$shares" = "$([ "$name" = shares ] && echo yes || echo no)" ] || fail "$name.json: shares of the link drawn: $shares"
done

# FP8 rows: bytes are those that travel, and figures those of fp8.
for send in rows fp8 fp8-quantized fp8-quantized-e8m0; do
    "$perf" pair "${common[@]}" --tokens 5 --routing uniform --copy-out --baseline --send "$send" --compare "$out/peers.json" --json "$out/$send.json" \
        >"$out/log" 2>&1 || fail "--send $send: exit code $?"
done
python3 - "$out" <<'PYTHON'
import json, sys
for send, row_bytes, lib in (("rows", 2048, "fast"), ("fp8", 1024 + 32, "of another type"), ("fp8-quantized", 1024 + 32, "of another type"),
                             ("fp8-quantized-e8m0", 1024 + 8, "of another type")):
    document = json.load(open(f"{sys.argv[1]}/{send}.json"))
    (row,) = document["rows"]
    assert row["dispatch_row_bytes"] == row_bytes and row["combine_row_bytes"] == 2048
    assert row["bytes_crossed"] == row["rows_crossed"] * (row_bytes + 2048) > 0
    assert [one["lib"] for one in document["compare"]] == [lib], document["compare"]
PYTHON
must_refuse 'needs bf16 tokens' --send fp8 --dtype fp16
must_refuse 'a multiple of 128' --send fp8-quantized --hidden 130
must_refuse 'goes without --weighted' --send fp8 --weighted
must_refuse '--send' --send fp4

must_refuse 'shape' --shape nobody-has-this
must_refuse '--hidden' --shape kimi-k2 --hidden 5
must_refuse '--weighted' --weighted --baseline
must_refuse '--tokens' --sweep --tokens 5
must_refuse 'another shape: hidden 1024, here 7168' --compare "$out/peers.json"
must_refuse 'has no pairs of fp32 rows' --shape nemotron-3 --dtype fp32 --compare "$out/peers.json"
echo '{"rows": 3}' >"$out/odd.json"
must_refuse 'odd.json' --compare "$out/odd.json"
echo "sweeps, shapes, budgets, stamps, the baseline and comparisons do what they promise"
