#!/usr/bin/env bash
# Usage: check_stress.sh MOELINK_PERF
# Some seconds of random pairs on the host are all right; a row that is damaged on the way there or back is found and named.
set -euo pipefail
perf=$1
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

stress() {
    "$perf" stress --device host --tokens 100 --delay-us 50 --timeout 60 "$@"
}

for how in "--ranks 2" "--ranks 3 --threads --seed 9"; do
    # shellcheck disable=SC2086
    stress $how --seconds 4 --pairs 2000 --json "$out/stress.json" >"$out/log" 2>&1 || fail "$how: exit code $?"
    grep -q ', 0 wrong values$' "$out/log" || fail "$how: no summary"
    python3 - "$out/stress.json" <<'PYTHON' || fail "$how: the JSON file"
import json, sys
document = json.load(open(sys.argv[1]))
totals = document["totals"]
assert document["ok"] and totals["wrong"] == 0 and document["wrong"] == [], document
assert totals["pairs"] >= 8 and totals["rows"] > totals["pairs"] and totals["bytes"] > totals["rows"], totals
PYTHON
done

# must_find DAMAGE TEXT
must_find() {
    local status=0
    stress --ranks 2 --seconds 60 --corrupt "$1" >"$out/log" 2>&1 || status=$?
    [ "$status" -eq 1 ] || fail "rows damaged before $1: exit code $status, must be 1"
    grep -q "^rank [01]: WRONG: .* $2 of token 0 " "$out/log" || fail "rows damaged before $1: not named"
}
must_find dispatch 'word 0 of payload [0-3]'
must_find combine 'value 0 of the sum'

status=0
"$perf" litmus --gpus 0,0 --rounds 100 >"$out/log" 2>&1 || status=$?
case $status in
0) grep -q 'must be 0$' "$out/log" || fail "litmus: no table" ;;
2) grep -q '^moelink-perf: ' "$out/log" || fail "litmus: no reason" ;;
*) fail "litmus: exit code $status" ;;
esac
echo "random pairs are right, damaged ones are found"
