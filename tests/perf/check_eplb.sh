#!/usr/bin/env bash
# Usage: check_eplb.sh MOELINK_PERF LOAD_FILE
# Experts moved as traffic changes, at a small size on the host: every byte right with exit code 0, a damaged one found with another.
set -euo pipefail
perf=$1
loads=$2
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

eplb() {
    "$perf" eplb --loads "$loads" --device host --tokens 16 --hidden 32 --iterations 2 --warmup 1 --repeat 1 --expert-bytes 5000 --check \
        --timeout 60 "$@"
}

# must_pass TEXT KIND CHANGES ARGUMENT...: all right, and the figures of each change fit together.
must_pass() {
    local what=$1 kind=$2 changes=$3
    shift 3
    eplb "$@" --json "$out/eplb.json" >"$out/log" 2>&1 || fail "$what: exit code $?"
    grep -q 'values compared were right' "$out/log" || fail "$what: does not say that all was right"
    grep -q "experts were moved by $kind " "$out/log" || fail "$what: not moved by $kind"
    python3 - "$out/eplb.json" "$changes" <<'PYTHON' || fail "$what: the JSON file is not right"
import json, sys
document = json.load(open(sys.argv[1]))
settings, rows = document["settings"], document["rows"]
assert document["ok"] and document["what"] == "eplb" and len(rows) == int(sys.argv[2])
for before, row in zip([None] + rows, rows):
    assert before is None or before["to"] == row["from"]
    assert row["copies"] > 0 and row["bytes"] == row["copies"] * settings["expert_bytes"]
    assert row["balance_before"] < row["balance_after"] <= row["balance_bound"] <= 1
    assert 0 < row["staged_experts"] <= settings["staging"]
    assert settings["staging"] * settings["expert_bytes"] <= row["staging_bytes"] < settings["staging"] * (settings["expert_bytes"] + 128 + 16 * settings["tensors"])
    assert row["sms"] == 0 and row["copied_by"] == "CPU"
    assert row["move_gbps"] > 0 and row["copy_gbps"] > 0
    # every expert has a slot at least; the tokens of the pairs come on top
    assert row["checked"] == "yes" and row["values_wrong"] == 0
    assert row["values_compared"] >= settings["layers"] * settings["experts"] * settings["expert_bytes"]
    assert row["skew_before"] >= 1 and row["skew_after"] >= 1
PYTHON
}

must_pass "four ranks" read 5 --ranks 4
must_pass "staged, few experts, layers" staged 2 --ranks 2 --layers 3 --experts 64 --slots 72 --staging 1 --back-end gloo --changes 2 --checksum
must_pass "many tensors" read 1 --ranks 2 --layers 2 --changes 1 --tensors 64 --sms -1
must_pass "threads, from scratch" read 1 --ranks 3 --threads --layers 2 --changes 1 --from-scratch --policy hashed --staging 2

status=0
eplb --ranks 3 --changes 1 --corrupt move >"$out/log" 2>&1 || status=$?
[ "$status" -eq 1 ] || fail "a byte damaged after the move: exit code $status, must be 1"
grep -q '^rank 2: .*, after the move: 1 wrong values of .*; the first: layer 0, slot 288, expert' "$out/log" ||
    fail "a byte damaged after the move: not named"

# must_refuse TEXT ARGUMENT...: exit code 2 and that text, before any rank is started.
must_refuse() {
    local text=$1
    shift
    status=0
    eplb "$@" >"$out/log" 2>&1 || status=$?
    [ "$status" -eq 2 ] && grep -q -- "$text" "$out/log" || fail "$*: exit code $status, must be 2 with: $text"
}
must_refuse '--slots is 434' --ranks 4 --slots 434
must_refuse '--experts is 999' --experts 999
must_refuse 'the group is on the host' --back-end nccl-own
must_refuse 'there is no communicator kind "carrier-pigeon"' --back-end carrier-pigeon
must_refuse '--sms is 4, and ranks on the host have no multiprocessors' --sms 4
must_refuse '--tensors is 40, and an expert has 32 bytes' --tensors 40 --expert-bytes 32
must_refuse 'unknown policy' --policy first
echo "experts moved by each back end of the host: right results pass, damaged ones fail"
