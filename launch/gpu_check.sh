#!/usr/bin/env bash
# What only a GPU can say, in one go and within a time: kernels, their speed, the train step beside PyTorch's, its memory.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash launch/gpu_check.sh [options]

  --out DIR        where the log and the JSON files go (default: runs/gpu_check in the checkout)
  --budget S       seconds for everything; what is left is given to the next stage (default: 780)
  --stages LIST    some of doctor,contract,attention,step,memory, in this order of value (default: all)
  --sizes LIST     steps of the stage `step` (default: b16-4f,l14-4f,b16-16f,l14-16f)
  --compile HOW    model or blocks: what torch compiles; blocks takes less of the budget (default: model)
  --dry-run        print the commands and stop

  doctor     versions, devices, and the backends that the shapes get
  contract   the kernels' tests, on the GPU
  attention  every backend of attention, forward and gradient, beside cuDNN's
  step       the train step beside PyTorch's of the same model: ms, MFU, memory foretold and taken
  memory     memory foretold and taken by a step of configs/ego4d_pretrain.py that keeps nothing (full remat)

Installs nothing: STVL_PYTHON (default: python3) has to bring jax with CUDA, flax, optax and jaxtyping; the stages doctor
and attention also tyro; contract also pytest, hypothesis and beartype; step also torch, and timm for timm's blocks.
STVL_EXTRA_PATH is a folder of packages that are missing there; what is in it comes before Python's own:
  pip install --target DIR --no-deps tyro docstring-parser typeguard beartype

A stage that fails or runs out of time does not stop the next. The exit status is 1 when one did.
TEXT
}

stop() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

OUT="" BUDGET=780 STAGES="doctor,contract,attention,step,memory" DRY=false COMPILE=model
SIZES="b16-4f,l14-4f,b16-16f,l14-16f"
while (($#)); do
    case "$1" in
        --out | --budget | --stages | --sizes | --compile)
            (($# > 1)) || stop "$1 needs a value"
            case "$1" in
                --out) OUT="$2" ;;
                --budget) BUDGET="$2" ;;
                --stages) STAGES="$2" ;;
                --sizes) SIZES="$2" ;;
                --compile) COMPILE="$2" ;;
            esac
            shift
            ;;
        --dry-run) DRY=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) stop "unknown argument $1" ;;
    esac
    shift
done
[[ "$BUDGET" =~ ^[1-9][0-9]*$ ]] || stop "--budget is a whole number of seconds above 0, found $BUDGET"
[[ "$COMPILE" =~ ^(model|blocks|off)$ ]] || stop "--compile is model, blocks or off, found $COMPILE"
IFS=, read -ra WANTED <<<"$STAGES"
for stage in "${WANTED[@]}"; do
    [[ "$stage" =~ ^(doctor|contract|attention|step|memory)$ ]] ||
        stop "--stages knows doctor, contract, attention, step and memory, found $stage"
done

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PYTHON="${STVL_PYTHON:-python3}"
OUT="${OUT:-$STVL_ROOT/runs/gpu_check}"
case "$OUT" in /*) ;; *) OUT="$PWD/$OUT" ;; esac
# The checkout needs no installation.
export PYTHONPATH="$STVL_ROOT${STVL_EXTRA_PATH:+:$STVL_EXTRA_PATH}" PYTHONUNBUFFERED=1
unset PYTHONNOUSERSITE
cd "$STVL_ROOT"

# words_of STAGE LEFT: the words go to WORDS, and to LIMIT how many of the seconds that are left it may take.
words_of() {
    local most
    case "$1" in
        doctor) most=60 ;;
        step) most=600 ;;
        memory) most=120 ;;
        *) most=180 ;;
    esac
    LIMIT=$(($2 < most ? $2 : most))
    case "$1" in
        doctor)
            WORDS=("$PYTHON" -m stvl doctor --shapes "b16-4f,b16-16f,l14-4f,l14-16f,text-77")
            WORDS+=(--json "$OUT/doctor.json")
            ;;
        contract)
            WORDS=(env STVL_TEST_PLATFORM=cuda "$PYTHON" -m pytest tests/ops -m gpu -q -p no:cacheprovider)
            ;;
        attention)
            WORDS=("$PYTHON" -m stvl bench attention --shapes "b16-4f,l14-16f,text-77" --impls "cudnn,gpu,xla")
            WORDS+=(--dtype bf16 --direction both --json "$OUT/attention.json")
            ;;
        step)
            # The second turn of stvl finds its program compiled. The table is printed before the time is over.
            WORDS=(env "JAX_COMPILATION_CACHE_DIR=$CACHE" "$PYTHON" -m tests.parity.bench_step --sizes "$SIZES")
            WORDS+=(--dtype bf16 --compile "$COMPILE" --limit 240 --total "$((LIMIT > 30 ? LIMIT - 15 : LIMIT))")
            WORDS+=(--json "$OUT/step.json")
            ;;
        memory)
            WORDS=(env XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 "$PYTHON" -m stvl.plan.resident)
            WORDS+=(configs/ego4d_pretrain.py size=b16 batch=256 dtype=bfloat16)
            WORDS+=(model.video.remat=full model.text.remat=full)
            ;;
    esac
}

# missing: the packages that the stages need and this Python does not find.
missing() {
    "$PYTHON" - <<'PY'
import importlib.util

for stage, names in {
    "every stage": ["jax", "flax", "optax", "jaxtyping", "PIL", "rich"],
    "doctor and attention": ["tyro"],
    "contract": ["pytest", "hypothesis", "beartype"],
    "step": ["torch", "timm"],
}.items():
    lost = [name for name in names if importlib.util.find_spec(name) is None]
    if lost:
        print(f"missing for {stage}: {', '.join(lost)}")
PY
}

# With --dry-run nothing is made: the folder of compiled programs has a name that stands for it.
if "$DRY"; then CACHE="CACHE"; else CACHE="$(mktemp -d "${TMPDIR:-/tmp}/stvl-gpu.XXXXXX")"; fi
trap '"$DRY" || rm -rf "$CACHE"' EXIT
"$DRY" || mkdir -p "$OUT"
LOG="$OUT/log.txt"

# show WORDS...: the command as one could type it from the top of the checkout.
show() {
    printf '$ env %q' "PYTHONPATH=$PYTHONPATH"
    # `env` of the command itself would stand there twice.
    if [[ "$1" == env ]]; then shift; fi
    printf ' %q' "$@"
    printf '\n'
}

if "$DRY"; then
    for stage in "${WANTED[@]}"; do
        words_of "$stage" "$BUDGET"
        show "${WORDS[@]}"
    done
    exit 0
fi

missing | tee "$LOG"
RESULTS=() FAILED=()
for stage in "${WANTED[@]}"; do
    left=$((BUDGET - SECONDS))
    if ((left < 10)); then
        RESULTS+=("$stage: not begun, the budget of $BUDGET s is spent")
        FAILED+=("$stage")
        continue
    fi
    words_of "$stage" "$left"
    begin=$SECONDS status=0
    {
        say "$stage, at most $LIMIT s"
        show "${WORDS[@]}"
    } | tee -a "$LOG"
    # The stage `memory` prints its JSON, and nothing else, on stdout.
    if [[ "$stage" == memory ]]; then copy="$OUT/memory.json"; else copy=/dev/null; fi
    timeout -k 10 "$LIMIT" "${WORDS[@]}" 2> >(tee -a "$LOG" >&2) | tee -a "$LOG" "$copy" || status=$?
    case "$status" in
        0) RESULTS+=("$stage: done in $((SECONDS - begin)) s") ;;
        124 | 137) RESULTS+=("$stage: stopped after $((SECONDS - begin)) s") ;;
        *) RESULTS+=("$stage: FAILED with status $status after $((SECONDS - begin)) s") ;;
    esac
    ((status == 0)) || FAILED+=("$stage")
done

{
    for line in "${RESULTS[@]}"; do say "$line"; done
    say "log and JSON files: $OUT"
} | tee -a "$LOG"
if ((${#FAILED[@]})); then fail "failed: ${FAILED[*]}"; fi
