#!/usr/bin/env bash
# Usage: check_headers.sh STANDARD INCLUDE_DIR HEADER... -- COMPILER...
# Compiles each header alone and included twice, pedantically. C++ headers (.hpp) are tried in C++ only.
set -euo pipefail

standard=$1
include_dir=$2
shift 2
headers=()
while [ "$1" != -- ]; do
    headers+=("$1")
    shift
done
shift
language=c
case $standard in c++*) language=c++ ;; esac

failed=0
for header in "${headers[@]}"; do
    name=moelink/$(basename "$header")
    if [ "${header##*.}" = hpp ] && [ "$language" = c ]; then
        continue
    fi
    # The declaration keeps C's "empty translation unit" away.
    if printf '#include <%s>\n#include <%s>\nint only_to_have_a_declaration(void);\n' "$name" "$name" |
        "$@" -x "$language" "-std=$standard" -pedantic-errors -Wall -Wextra -Wundef -Wshadow -Werror \
            -I "$include_dir" -fsyntax-only -; then
        echo "ok      $name as $standard"
    else
        echo "FAILED  $name as $standard"
        failed=1
    fi
done
exit "$failed"
