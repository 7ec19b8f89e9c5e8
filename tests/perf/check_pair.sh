#!/usr/bin/env bash
# Usage: check_pair.sh MOELINK_PERF MANAGER LOAD_FILE
# The main job at a small size with one manager: every value right with exit code 0, a damaged value found with another.
set -euo pipefail
perf=$1
manager=$2
loads=$3
# shellcheck source=tests/perf/check.sh
. "$(dirname "$0")/check.sh"

pair() {
    "$perf" pair --device host --ranks 2 --manager "$manager" --hidden 96 --tokens 1,33 --iterations 2 --warmup 1 --check --timeout 60 "$@"
}

# must_pass TEXT ARGUMENT...
must_pass() {
    local what=$1
    shift
    pair "$@" --json "$out/pair.json" >"$out/log" 2>&1 || fail "$what: exit code $?"
    grep -q 'values compared were right' "$out/log" || fail "$what: does not say that all was right"
    grep -q '"ok": true' "$out/pair.json" || fail "$what: the JSON file does not say that all was right"
}

must_pass "processes" --routing uniform --routing hot
must_pass "threads, odd sizes" --threads --ranks 3 --hidden 97 --dtype fp16 --experts 10 --topk 3 --uneven --mask 0.1 --routing zipf:1.2
for send in fp8 fp8-quantized fp8-quantized-e8m0; do
    must_pass "sent as $send" --hidden 384 --send "$send" --mask 0.1 --uneven
done
must_pass "real loads" --topk 6 --dtype fp32 --routing "load:$loads:chinese"

# Exact ids from a file: [66, 3] int16, so that 2 ranks draw 33 tokens each.
python3 - "$out/ids.npy" <<'PYTHON'
import struct, sys
rows, top_k, experts = 66, 3, 16
header = "{'descr': '<i2', 'fortran_order': False, 'shape': (%d, %d), }" % (rows, top_k)
header += " " * (63 - (10 + len(header)) % 64) + "\n"
ids = [(7 * row + 5 * k) % experts for row in range(rows) for k in range(top_k)]
with open(sys.argv[1], "wb") as file:
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack("<%dh" % len(ids), *ids))
PYTHON
must_pass "exact ids" --experts 16 --topk 3 --routing "ids:$out/ids.npy"

for where in dispatch combine; do for send in rows fp8 fp8-quantized-e8m0; do
    status=0
    pair --hidden 128 --send "$send" --corrupt "$where" >"$out/log" 2>&1 || status=$?
    [ "$status" -eq 1 ] || fail "a value damaged after $where: exit code $status, must be 1"
    grep -q "^rank 1: .* 1 wrong values of .* in a $where" "$out/log" || fail "a value damaged after $where: not named"
done; done

status=0
pair --experts 7 --topk 8 >"$out/log" 2>&1 || status=$?
[ "$status" -eq 2 ] && grep -q -- '--topk is 8 but there are only 7 experts' "$out/log" || fail "bad options: exit code $status"
echo "$manager: right results pass, damaged ones fail"
