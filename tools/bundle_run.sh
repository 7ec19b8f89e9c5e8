#!/usr/bin/env bash
# Usage: run-gpu-suites [--deadline SECONDS] [--logs DIR] [--help] [NAME...]
#
# Runs the tests of this bundle one after another and prints what came of each; the last line is the summary.
# NAME: run the tests whose names contain one of these words; all without any.
#   --deadline SECONDS   end a test after this time, as failed (300, or less where the test says so)
#   --logs DIR           keep what each test printed there
# Needs nothing but glibc and NVIDIA's driver. A test that finds too few GPUs is skipped.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
deadline=300
logs=
names=()
while [ $# -gt 0 ]; do
    case $1 in
    --deadline) [ $# -gt 1 ] || { echo "--deadline needs seconds" >&2 && exit 2; }
        deadline=$2 && shift ;;
    --logs) [ $# -gt 1 ] || { echo "--logs needs a folder" >&2 && exit 2; }
        logs=$2 && shift ;;
    -h | --help) sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0" && exit 0 ;;
    -*) echo "unknown argument: $1 (see --help)" >&2 && exit 2 ;;
    *) names+=("$1") ;;
    esac
    shift
done
if [ -n "$logs" ]; then
    mkdir -p "$logs"
else
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
fi

chosen() {
    local name
    [ ${#names[@]} -gt 0 ] || return 0
    for name in "${names[@]}"; do
        case $1 in *"$name"*) return 0 ;; esac
    done
    return 1
}

passed=0
failed=0
skipped=0
while IFS=$'\t' read -r name limit command; do
    chosen "$name" || continue
    [ "$limit" -gt 0 ] && [ "$limit" -lt "$deadline" ] || limit=$deadline
    log=$logs/$name.log
    began=$SECONDS
    here=$here timeout --kill-after=10 "$limit" bash -c "$command" >"$log" 2>&1 </dev/null
    status=$?
    took="$((SECONDS - began)) s"
    case $status in
    0)
        passed=$((passed + 1))
        echo "ok       $name ($took)"
        ;;
    77)
        skipped=$((skipped + 1))
        echo "skipped  $name: $(tail -n 1 "$log")"
        ;;
    *)
        failed=$((failed + 1))
        [ "$status" -ne 124 ] && [ "$status" -ne 137 ] || echo "         $name did not end within $limit s"
        echo "FAILED   $name ($took, exit status $status); its last lines:"
        tail -n 60 "$log" | sed 's/^/         | /'
        ;;
    esac
done <"$here/tests.list"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
