#!/usr/bin/env bash
# Sets everything up, renders a small video world to mp4 files, trains EVA02-AT on it, prints the evaluation table and
# searches the videos by a sentence.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash launch/quickstart.sh [--none] [--out DIR]

  (nothing)    render, train, evaluate, search
  --none       the same model and budget once more with temporal positions switched off, and the table of both
  --out DIR    where videos, checkpoints and results go (default: runs/quickstart in the checkout)

STVL_VENV sets the place of the virtual environment, STVL_PYTHON the Python it is made with.
A second call reuses the environment, the videos and every finished step of the training.
TEXT
}

OUT=""
NONE=false
while (($#)); do
    case "$1" in
        --none) NONE=true ;;
        --out)
            (($# > 1)) || { usage >&2; exit 2; }
            OUT="$2"
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'unknown argument: %s\n\n' "$1" >&2
            usage >&2
            exit 2
            ;;
    esac
    shift
done

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT="${OUT:-$STVL_ROOT/runs/quickstart}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
cd "$STVL_ROOT"

ensure_installed core

STVL="$STVL_VENV/bin/stvl"
WORLD="$OUT/world"

# run WHAT COMMAND...: says what is done, shows the command as one could type it, and how long it took.
run() {
    local what="$1" begin=$SECONDS
    shift
    say "$what"
    say "  \$ stvl ${*:2}"
    "$@"
    say "  done in $((SECONDS - begin)) s"
}

# ---- The commands -------------------------------------------------------------------------------------------------

render() {
    run "1/4 render the toy world: videos and annotations" \
        "$STVL" data toy --out "$WORLD" --workers 2 --world.train-videos 800 --world.size 64
}

train() { # train POSITIONS
    run "2/4 train EVA02-AT (temporal positions: $1)" \
        "$STVL" train configs/quickstart.py "world=$WORLD" "run=$OUT/$1" "positions=$1"
}

evaluate() { # evaluate POSITIONS...
    local names=("$@")
    run "3/4 evaluate on the test videos: retrieval, multiple choice and motion opposites, beside chance" \
        "$STVL" eval "${names[@]/#/$OUT/}"
}

search() {
    run "4/4 search the test clips by a sentence" \
        "$STVL" search --run "$OUT/both" --build "$WORLD" --windows "$WORLD/manifest_test.csv" \
        --sheet "$OUT/hits.png" "move red ball left"
}

render
train both
if "$NONE"; then
    train none
    evaluate both none
else
    evaluate both
    search
fi

# -------------------------------------------------------------------------------------------------------------------

say "finished in $((SECONDS / 60)) min $((SECONDS % 60)) s; everything lies in $OUT"
