# Shared by the checks in this folder. Sourced, never run: sets `out`, a folder that goes away at the end.
# shellcheck shell=bash

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Ends the check with what went wrong, and what the program printed last.
fail() {
    echo "$*"
    cat "$out"/log 2>/dev/null || true
    exit 1
}
