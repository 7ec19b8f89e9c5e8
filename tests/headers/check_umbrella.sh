#!/usr/bin/env bash
# Usage: check_umbrella.sh INCLUDE_DIR HEADER...
# moelink.h includes every other C header, and the list in include/meson.build is what the folder holds.
set -euo pipefail

include_dir=$1
shift
failed=0
for header in "$@"; do
    name=$(basename "$header")
    case $name in moelink.h | *.hpp) continue ;; esac
    if ! grep -qF "#include <moelink/$name>" "$include_dir/moelink/moelink.h"; then
        echo "moelink.h does not include <moelink/$name>"
        failed=1
    fi
done
listed=$(for header in "$@"; do basename "$header"; done | sort)
present=$(find "$include_dir/moelink" -name '*.h*' -exec basename {} \; | sort)
if [ "$listed" != "$present" ]; then
    echo "include/meson.build (<) and the folder include/moelink (>) differ:"
    diff <(echo "$listed") <(echo "$present") || true
    failed=1
fi
[ "$failed" -ne 0 ] || echo "moelink.h includes all of: $(echo "$listed" | tr '\n' ' ')"
exit "$failed"
