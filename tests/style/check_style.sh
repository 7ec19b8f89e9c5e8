#!/usr/bin/env bash
# Usage: check_style.sh SOURCE_ROOT
# Rules of the house that a grep can check. Prints each breach as file:line.
set -euo pipefail
cd "$1"

# Everything that people write, with or without git; nothing generated or installed.
all_files() {
    local folders=()
    for folder in include lib kernels bindings tests tools docs examples pkgconfig; do
        [ ! -d "$folder" ] || folders+=("$folder")
    done
    {
        find . -maxdepth 1 -type f ! -name LICENSE
        find "${folders[@]}" \( -name target -o -name __pycache__ -o -name '.*' -o -name node_modules \) -prune -o -type f -print
    } | grep -vE '\.(csv|png|svg|bin|o|so|gz|lock|sum|swp|pyc)$|compile_commands\.json|~$'
}

mapfile -t files < <(all_files)
mapfile -t c_files < <(printf '%s\n' "${files[@]}" | grep -E '\.(c|cc|cu|cuh|h|hpp)$')
failed=0

# report TEXT: what stands on standard input, if anything, breaks the rule TEXT.
report() {
    local lines
    lines=$(cat)
    [ -n "$lines" ] || return 0
    printf '%s:\n%s\n' "$1" "$lines"
    failed=1
}

report "tabs in C, C++ or CUDA files" < <(grep -nP '\t' "${c_files[@]}" /dev/null)
report "trailing blanks" < <(grep -nIP '[ \t]+$' "${files[@]}" /dev/null)
report "no newline at the end" < <(for file in "${files[@]}"; do
    [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file" | tr -d '\0\n')" ] || echo "$file"
done)
report "a CUDA, NCCL or C++ include in a public C header" < <(
    grep -nE '^ *# *include *[<"](cuda|nccl|nvml|driver_types|c[a-z]+>|[a-z_]+>)' include/moelink/*.h /dev/null)
report "kernels that include what is not theirs" < <(
    grep -rnE '^ *# *include *["<](\.\./lib|lib/|moelink/)' kernels)
report "files over 700 lines" < <(
    for file in "${files[@]}"; do
        case $file in
        lib/* | kernels/* | include/* | tools/* | tests/*) ;;
        *) continue ;;
        esac
        lines=$(wc -l <"$file")
        [ "$lines" -le 700 ] || echo "$file: $lines lines"
    done)
report "work left undone in the text" < <(grep -nIwE 'TO''DO|FIX''ME' "${files[@]}" /dev/null)

[ "$failed" -ne 0 ] || echo "${#files[@]} files, ${#c_files[@]} of them C, C++ or CUDA: all as they should be"
exit "$failed"
