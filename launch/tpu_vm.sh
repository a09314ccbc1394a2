#!/usr/bin/env bash
# One stvl command on every worker of a Cloud TPU VM slice, over gcloud.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash launch/tpu_vm.sh --name TPU --zone ZONE [options] -- COMMAND...
bash launch/tpu_vm.sh --name TPU --zone ZONE [options] --setup

  --name TPU       name of the TPU VM (or queued resource's node)
  --zone ZONE      its zone
  --project ID     its project (default: gcloud's)
  --dir DIR        the checkout on the workers, from their home folder (default: stvl)
  --set NAME=VALUE a variable for every worker, such as LIBTPU_INIT_ARGS=...; may be given again
  --setup          make .venv in the checkout of every worker and install stvl[tpu,gcs] with the pinned versions
  --dry-run        print the command and stop

  bash launch/tpu_vm.sh --name pod --zone us-east5-b -- doctor --distributed --checkpoint gs://bucket/runs
  bash launch/tpu_vm.sh --name pod --zone us-east5-b -- train configs/ego4d_pretrain.py run=gs://bucket/ego4d

The workers find each other through the metadata server. The command runs as long as this terminal does: start it in
tmux. gcloud has to be signed in; nothing secret is taken or passed on.
TEXT
}

stop() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

NAME="" ZONE="" PROJECT="" DIR=stvl SETUP=false DRY=false SETTINGS=()
while (($#)); do
    case "$1" in
        --name | --zone | --project | --dir | --set)
            (($# > 1)) || stop "$1 needs a value"
            case "$1" in
                --name) NAME="$2" ;;
                --zone) ZONE="$2" ;;
                --project) PROJECT="$2" ;;
                --dir) DIR="$2" ;;
                --set)
                    [[ "$2" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || stop "--set reads NAME=VALUE, found $2"
                    SETTINGS+=("$2")
                    ;;
            esac
            shift
            ;;
        --setup) SETUP=true ;;
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
[[ -n "$NAME" && -n "$ZONE" ]] || stop "--name and --zone are needed"
if "$SETUP"; then
    (($# == 0)) || stop "--setup takes no command"
else
    (($#)) || stop "no command after --"
fi

# What the shell of every worker runs; each word is quoted for it.
if "$SETUP"; then
    printf -v remote 'cd %q && python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e %q' \
        "$DIR" '.[tpu,gcs]'
else
    printf -v words ' %q' "${SETTINGS[@]}" .venv/bin/stvl "$@"
    printf -v remote 'cd %q && exec env%s' "$DIR" "$words"
fi
command=(gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" --worker=all "--command=$remote")
[[ -z "$PROJECT" ]] || command+=("--project=$PROJECT")

printf '$'
printf ' %q' "${command[@]}"
printf '\n'
if "$DRY"; then exit 0; fi
exec "${command[@]}"
