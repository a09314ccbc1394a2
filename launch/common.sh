# Sourced by the launch scripts: finds Python, keeps one virtual environment, installs only when something changed.
# STVL_PYTHON  the interpreter to use (default: the first suitable one on PATH)
# STVL_VENV    where the environment lives (default: .venv in the checkout)

STVL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STVL_VENV="${STVL_VENV:-$STVL_ROOT/.venv}"
case "$STVL_VENV" in /*) ;; *) STVL_VENV="$PWD/$STVL_VENV" ;; esac
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME
# XLA takes its buffers anew in each step. With huge pages (glibc 2.35 and newer, ignored elsewhere) a CPU step of the
# quickstart has about 500 minor page faults instead of 107,000 (getrusage, mean of 15 steps).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

say() { printf '[stvl] %s\n' "$*"; }

fail() {
    printf '[stvl] error: %s\n' "$*" >&2
    exit 1
}

# "11" for Python 3.11, nothing when the command is missing or too old.
python_minor() {
    "$1" -c 'import sys; v = sys.version_info; print(v[1]) if v[:2] >= (3, 11) else None' 2>/dev/null || true
}

# Prints the interpreter to build the environment with. Versions that every dependency ships wheels for come first.
find_python() {
    local candidate minor newer=""
    if [[ -n "${STVL_PYTHON:-}" ]]; then
        [[ -n "$(python_minor "$STVL_PYTHON")" ]] ||
            fail "STVL_PYTHON=$STVL_PYTHON must be Python 3.11 or newer; found: $("$STVL_PYTHON" --version 2>&1 | head -n 1)"
        printf '%s\n' "$STVL_PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python; do
        minor="$(python_minor "$candidate")"
        if [[ "$minor" == 11 || "$minor" == 12 ]]; then
            printf '%s\n' "$candidate"
            return
        fi
        [[ -z "$newer" && -n "$minor" ]] && newer="$candidate"
    done
    if [[ -n "$newer" ]]; then
        say "only $("$newer" --version) was found: the tokenizer has no wheel for it and needs a Rust compiler" >&2
        printf '%s\n' "$newer"
        return
    fi
    local found=""
    for candidate in python3 python; do
        if command -v "$candidate" >/dev/null; then
            found+=" $candidate is $("$candidate" --version 2>&1 | head -n 1);"
        fi
    done
    fail "Python 3.11 or newer is needed; found:${found:- no python at all;} install Python 3.12, or set STVL_PYTHON to one"
}

# make_venv PYTHON: also where the system's Python comes without ensurepip, as long as it has pip.
make_venv() {
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv --clear "$STVL_VENV"
    elif "$1" -m pip --version >/dev/null 2>&1; then
        "$1" -m venv --clear --without-pip "$STVL_VENV"
        "$1" -m pip --python "$STVL_VENV/bin/python" install --quiet pip
    else
        fail "$1 has neither ensurepip nor pip: install one of them (on Debian and Ubuntu: python3-venv)"
    fi
}

ensure_venv() {
    if [[ -x "$STVL_VENV/bin/python" && -n "$(python_minor "$STVL_VENV/bin/python")" ]] &&
        "$STVL_VENV/bin/python" -c 'import pip' 2>/dev/null; then
        say "environment: reusing $STVL_VENV ($("$STVL_VENV/bin/python" --version))"
        return
    fi
    if [[ -e "$STVL_VENV" && ! -e "$STVL_VENV/pyvenv.cfg" ]] && [[ -n "$(ls -A "$STVL_VENV")" ]]; then
        fail "$STVL_VENV is in the way and is no virtual environment: move it, or set STVL_VENV to another place"
    fi
    local python
    python="$(find_python)"
    say "environment: creating $STVL_VENV with $python ($("$python" --version))"
    make_venv "$python"
}

# What an installation depends on: the two files, the place of the checkout, the Python version.
install_key() {
    "$STVL_VENV/bin/python" - "$STVL_ROOT" <<'PY'
import hashlib, pathlib, sys

root = pathlib.Path(sys.argv[1])
key = hashlib.sha256(f"{root} {sys.version_info[:2]}".encode())
for name in ("pyproject.toml", "constraints.txt"):
    key.update((root / name).read_bytes())
print(key.hexdigest())
PY
}

# ensure_installed core|dev: dev holds all of core, so an up-to-date dev installation serves both.
ensure_installed() {
    local extras="$1" target="$STVL_ROOT" key stamp
    [[ "$extras" == core ]] || target="${STVL_ROOT}[$extras]"
    ensure_venv
    key="$(install_key)"
    for stamp in "$STVL_VENV/.stvl-$extras" "$STVL_VENV/.stvl-dev"; do
        if [[ -f "$stamp" && "$(<"$stamp")" == "$key" ]]; then
            say "packages: up to date with pyproject.toml and constraints.txt"
            return
        fi
    done
    local log="$STVL_VENV/install.log" begin=$SECONDS
    say "packages: installing stvl ($extras) with the pinned versions of constraints.txt; about a minute, log in $log"
    rm -f "$STVL_VENV/.stvl-$extras"
    if ! "$STVL_VENV/bin/python" -m pip install -c "$STVL_ROOT/constraints.txt" -e "$target" >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        fail "pip could not install the packages; the lines above are the end of $log"
    fi
    printf '%s\n' "$key" >"$STVL_VENV/.stvl-$extras"
    say "packages: installed in $((SECONDS - begin)) s"
}
