#!/usr/bin/env bash
# Usage: check_install.sh SOURCE_ROOT BUILD_ROOT PREFIX MESON PKG_CONFIG
# Installs into an empty folder, then compiles and runs README.md's first C example there, knowing only pkg-config's word.
set -euo pipefail

source_root=$1
build_root=$2
prefix=$3
meson=$4
pkg_config=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$meson" install -C "$build_root" --no-rebuild --quiet --destdir "$work/root"
pc=$(find "$work/root" -name moelink.pc)
[ -n "$pc" ] || { echo "moelink.pc is not installed" && exit 1; }
export PKG_CONFIG_LIBDIR=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$work/root
unset PKG_CONFIG_PATH
echo "pkg-config --cflags --libs moelink: $("$pkg_config" --cflags --libs moelink)"
read -r -a flags < <("$pkg_config" --cflags --libs moelink)
library_dir=$("$pkg_config" --variable=libdir moelink)
case $library_dir in "$work"/*) ;; *) library_dir=$work/root$library_dir ;; esac

for file in "$library_dir/libmoelink.so" "$work/root$prefix/include/moelink/moelink.h"; do
    [ -e "$file" ] || { echo "${file#"$work/root"} is not installed" && exit 1; }
done
if strings -a "$pc" | grep -iE 'cuda_runtime|cudart|/\.deps/|fmt|asio'; then
    echo "moelink.pc gives away what the library is built with"
    exit 1
fi

[ -f "$source_root/README.md" ] || { echo 'there is no README.md, whose first ```c block is the example of use' && exit 1; }
awk '/^```c$/ {inside = 1; next} inside && /^```/ {exit} inside' "$source_root/README.md" >"$work/example.c"
[ -s "$work/example.c" ] || { echo 'README.md has no ```c block: the example of use' && exit 1; }
export LD_LIBRARY_PATH=$library_dir
"${CC:-cc}" -std=c99 -D_GNU_SOURCE -Wall -Wextra -Werror "$work/example.c" -o "$work/example" "${flags[@]}"
(cd "$work" && ./example)
echo "the first C example of README.md compiles and runs"

if [ -e "$work/root$prefix/include/moelink/moelink.hpp" ]; then
    printf '#include <moelink/moelink.hpp>\nint main() { return moelink_version() == MOELINK_VERSION ? 0 : 1; }\n' \
        >"$work/cpp.cc"
    "${CXX:-c++}" -std=c++20 -Wall -Wextra -Werror "$work/cpp.cc" -o "$work/cpp" "${flags[@]}"
    "$work/cpp"
    echo "a C++ program with moelink.hpp compiles and runs"
fi

# What was installed must not look back into the build folder or the checkout.
while IFS= read -r program; do
    "$program" --help >/dev/null
    echo "${program##*/} --help runs"
done < <(find "$work/root$prefix/bin" -type f 2>/dev/null)
if readelf -d "$library_dir/libmoelink.so" | grep -E 'RPATH|RUNPATH'; then
    echo "the installed library has a run path"
    exit 1
fi
