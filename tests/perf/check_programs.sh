#!/usr/bin/env bash
# Usage: check_programs.sh MOELINK_PERF MOELINK_INFO
# moelink-perf link and moelink-info run on a machine without a GPU and write JSON with what they promise.
set -euo pipefail
perf=$1
info=$2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$perf" link --device host --megabytes 1 --json "$out/link.json" >"$out/log" 2>&1 || { cat "$out/log" && exit 1; }
"$info" >"$out/info.txt"
grep -q 'one-sided' "$out/info.txt"
"$info" --json >"$out/info.json"
python3 - "$out/link.json" "$out/info.json" <<'PYTHON'
import json, sys
link, info = (json.load(open(path)) for path in sys.argv[1:])
figures = link["host"]["figures"]
assert figures, "link measured nothing"
missing = {"version", "devices", "peers", "libraries", "providers", "managers", "all2all_backends"} - set(info)
assert not missing, f"moelink-info --json lacks {missing}"
assert any("host-shm" in json.dumps(row) for row in (info["providers"] if isinstance(info["providers"], list) else [info["providers"]]))
PYTHON
status=0
"$perf" link --device host --json /nonexistent/link.json >"$out/log" 2>&1 || status=$?
[ "$status" -eq 2 ] && grep -q 'cannot be written' "$out/log" || { cat "$out/log" && exit 1; }
echo "link and info run and write what they promise"
