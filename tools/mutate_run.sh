#!/usr/bin/env bash
# Usage: run-mutants [--seconds SECONDS] [--logs DIR] [--help] [NAME...]
#
# Runs moelink-perf stress with each library of this bundle that lacks one thing that order depends on, and says whether the
# stress run found it wrong; the whole library ("none") must pass. The last line is the summary.
# NAME: these only; all without any. Other arguments of moelink-perf stress: in MOELINK_STRESS, "--device cuda --ranks 2" by default.
#
#   --seconds SECONDS   give up on one that was not found after this time (20)
#   --logs DIR          keep what each run printed there
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seconds=20
logs=
names=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) [ $# -gt 1 ] || { echo "--seconds needs a number" >&2 && exit 2; }
        seconds=$2 && shift ;;
    --logs) [ $# -gt 1 ] || { echo "--logs needs a folder" >&2 && exit 2; }
        logs=$2 && shift ;;
    -h | --help) sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0" && exit 0 ;;
    -*) echo "unknown argument: $1 (see --help)" >&2 && exit 2 ;;
    *) names+=("$1") ;;
    esac
    shift
done
if [ ${#names[@]} -eq 0 ]; then
    mapfile -t names < <(cd "$here/mutants" && ls)
fi
if [ -n "$logs" ]; then
    mkdir -p "$logs"
else
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
fi
read -ra arguments <<<"${MOELINK_STRESS:---device cuda --ranks 2}"

bad=0
for name in "${names[@]}"; do
    log=$logs/$name.log
    began=$SECONDS
    manager=one-sided
    case $name in fifo_*) manager=two-sided ;; esac
    LD_LIBRARY_PATH=$here/mutants/$name timeout --kill-after=5 $((seconds + 30)) \
        "$here/bin/moelink-perf" stress "${arguments[@]}" --manager "$manager" --seconds "$seconds" --timeout 5 >"$log" 2>&1 </dev/null
    status=$?
    took="$((SECONDS - began)) s"
    pairs=$(grep -o '^[0-9]* pairs .*' "$log" | tail -n 1)
    first=$(grep -m 1 -E 'WRONG|error' "$log" | cut -c 1-220)
    # 1: wrong values, or a rank that failed; 124 and 137: it hung, which is a finding too.
    if [ "$name" = none ]; then
        [ "$status" -eq 0 ] && verdict=ok || verdict=BAD
    else
        case $status in 1 | 124 | 137) verdict=ok ;; *) verdict=BAD ;; esac
    fi
    [ "$verdict" = ok ] || bad=$((bad + 1))
    printf '%-4s %-18s exit status %s after %s; %s\n' "$verdict" "$name" "$status" "$took" "${pairs:-no summary}"
    [ -z "$first" ] || printf '     %s\n' "$first"
    [ "$verdict" = ok ] || tail -n 5 "$log" | sed 's/^/     | /'
done
echo "${#names[@]} libraries, $bad not as they must be"
[ "$bad" -eq 0 ]
