# Shell helpers shared by the scripts in tools/. Sourced, never run: sets `root` and goes there.
# shellcheck shell=bash
# shellcheck disable=SC2034  # variables set here are read by the scripts that source this

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

deps=$root/.deps
venv=$deps/venv
min_meson=1.3.0
min_cuda=12.8 # the first nvcc that knows sm_100

say() { printf '%s\n' "-- $*"; }
warn() { printf '%s\n' "-- warning: $*" >&2; }
die() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

# The comment block at the head of the calling script is its help text.
print_help() {
    sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$1"
}

have() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANT
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# Programs that tools/setup placed in the checkout come first.
use_deps() {
    case ":$PATH:" in
    *":$venv/bin:"*) ;;
    *) [ ! -d "$venv/bin" ] || PATH=$venv/bin:$PATH ;;
    esac
    export PATH
}

# Prints the version of an nvcc, such as 13.0; nothing when it does not run.
nvcc_version() {
    "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p'
}

# Prints the nvcc that the build will use; the same places in the same order as kernels/meson.build.
find_nvcc() {
    local nvcc
    for nvcc in "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc "$deps/cuda/nvidia/cu13/bin/nvcc"; do
        if [ -n "$nvcc" ] && [ -x "$nvcc" ] && version_at_least "$(nvcc_version "$nvcc")" "$min_cuda"; then
            printf '%s\n' "$nvcc"
            return 0
        fi
    done
    return 1
}

# Prints the compute capabilities that the kernels are to be built for here, as Meson's gpu_archs takes them: those of this machine's GPUs
# that the kernels run on, else 90.
gpu_archs() {
    local found
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | awk '$1 >= 90' | sort -un | paste -sd, || true)
    printf '%s\n' "${found:-90}"
}

# configure DIR [MESON OPTION...]: sets a build folder up, or again when its options or the CUDA compiler changed.
configure() {
    local dir=$1 wanted
    shift
    wanted="nvcc=$(find_nvcc || true) $*"
    if [ -f "$dir/build.ninja" ]; then
        [ "$(cat "$dir/.configured-with" 2>/dev/null || true)" != "$wanted" ] || return 0
        meson setup --reconfigure "$dir" "$@"
    else
        meson setup "$dir" "$@"
    fi
    printf '%s\n' "$wanted" >"$dir/.configured-with"
}
