#!/usr/bin/env bash
# Several processes of one stvl command on this machine: for GPUs, one process each, and for trying things on a CPU.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash launch/local.sh [options] -- COMMAND...

  -n, --processes N   how many processes (default: 2)
  --fake N            every process poses as N devices on the CPU
  --gpus              process I sees GPU I only
  --port P            port of process 0 (default: a free one)
  --logs DIR          where the output of processes 1, 2, ... goes (default: a new folder under the system's)
  --dry-run           print the commands and stop

COMMAND is a command of stvl without its name:
  bash launch/local.sh -n 2 --fake 4 -- train configs/quickstart.py run=runs/two steps=20

STVL names the program (default: the one in .venv, which is installed first). Process 0 writes to this terminal. The exit
status is that of the first process, by number, that did not end with 0.
TEXT
}

stop() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

PROCESSES=2 FAKE="" GPUS=false PORT="" LOGS="" DRY=false
while (($#)); do
    case "$1" in
        -n | --processes | --fake | --port | --logs)
            (($# > 1)) || stop "$1 needs a value"
            case "$1" in
                -n | --processes) PROCESSES="$2" ;;
                --fake) FAKE="$2" ;;
                --port) PORT="$2" ;;
                --logs) LOGS="$2" ;;
            esac
            shift
            ;;
        --gpus) GPUS=true ;;
        --dry-run) DRY=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) stop "unknown argument $1 (options come first, then --, then the command)" ;;
    esac
    shift
done
(($#)) || stop "no command after --"
for number in "$PROCESSES" "${FAKE:-1}" "${PORT:-1}"; do
    [[ "$number" =~ ^[1-9][0-9]*$ ]] || stop "a whole number above 0 is needed, found $number"
done
if "$GPUS" && [[ -n "$FAKE" ]]; then stop "--gpus and --fake exclude each other"; fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ -z "${STVL:-}" ]]; then
    STVL="$STVL_VENV/bin/stvl"
    "$DRY" || ensure_installed core
fi

# A port that nobody answers on; process 0 says so where it is taken after all.
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%s\n' "$port"
            return
        fi
    done
    fail "no free port found; give one with --port"
}
PORT="${PORT:-$(free_port)}"

# settings I: the variables of process I, one a line.
settings() {
    printf '%s\n' "STVL_COORDINATOR=127.0.0.1:$PORT" "STVL_PROCESSES=$PROCESSES" "STVL_PROCESS=$1"
    if [[ -n "$FAKE" ]]; then
        printf '%s\n' JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo \
            "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$FAKE"
    fi
    if "$GPUS"; then printf 'CUDA_VISIBLE_DEVICES=%s\n' "$1"; fi
}

for ((process = 0; process < PROCESSES; process++)); do
    mapfile -t words < <(settings "$process")
    printf '$ env'
    printf ' %q' "${words[@]}" "$STVL" "$@"
    printf '\n'
done
if "$DRY"; then exit 0; fi

LOGS="${LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/stvl-local.XXXXXX")}"
mkdir -p "$LOGS"
PIDS=() SIGNALLED=false
pass_on() {
    SIGNALLED=true
    for pid in "${PIDS[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((process = 0; process < PROCESSES; process++)); do
    mapfile -t words < <(settings "$process")
    if ((process == 0)); then
        env "${words[@]}" "$STVL" "$@" &
    else
        env "${words[@]}" "$STVL" "$@" >"$LOGS/process-$process.log" 2>&1 &
    fi
    PIDS+=("$!")
done

STATUS=0
for ((process = 0; process < PROCESSES; process++)); do
    # A signal that is passed on ends `wait` before the process has ended: wait again.
    while true; do
        SIGNALLED=false status=0
        wait "${PIDS[$process]}" || status=$?
        "$SIGNALLED" || break
    done
    if ((status)); then
        say "process $process ended with status $status" >&2
        if ((process)); then tail -n 20 "$LOGS/process-$process.log" | sed "s/^/[process $process] /" >&2; fi
        ((STATUS)) || STATUS=$status
    fi
done
say "output of processes 1 and up: $LOGS"
exit "$STATUS"
