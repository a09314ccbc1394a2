#!/usr/bin/env bash
# Sets everything up, then runs lint, format check, type check and the tests. Arguments go to pytest:
#   bash launch/test.sh                      everything this machine can run
#   bash launch/test.sh -m "not slow"        the quick ones (replaces the default -m)
#   bash launch/test.sh tests/rope -k mrope  some of them
# Every check runs even when one before it failed; the exit status is non-zero when any of them failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_installed dev
BIN="$STVL_VENV/bin"
FAILED=()

# The tests mean the CPU; tests/conftest.py splits it into eight devices.
export JAX_PLATFORMS=cpu
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1
export PATH="$BIN:$PATH"

check() { # check NAME COMMAND...
    local name="$1" begin=$SECONDS
    shift
    say "$name: $*"
    if "$@"; then
        say "$name: passed in $((SECONDS - begin)) s"
    else
        say "$name: FAILED after $((SECONDS - begin)) s"
        FAILED+=("$name")
    fi
}

# Hardware that is not here, and torch where it is not installed, is left out by mark; nothing is skipped inside tests.
MARKS="not tpu and not gpu"
"$BIN/python" -c 'import torch' 2>/dev/null || MARKS+=" and not torch"

cd "$STVL_ROOT"
check "lint" ruff check .
check "format" ruff format --check .
check "types" pyright
check "tests" pytest -n auto -m "$MARKS" "$@"

if ((${#FAILED[@]})); then
    fail "failed: ${FAILED[*]}"
fi
say "all checks passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
