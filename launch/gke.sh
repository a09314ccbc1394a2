#!/usr/bin/env bash
# One stvl command on TPU slices of a GKE cluster, as a JobSet: renders launch/gke_jobset.yaml and applies it.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash launch/gke.sh --name NAME --image IMAGE --accelerator LABEL --topology TxTxT [options] -- COMMAND...

  --name NAME          of the JobSet: small letters, digits and dashes
  --image IMAGE        a container image with stvl[tpu] installed (with stvl[tpu,gcs] for run=gs://...)
  --accelerator LABEL  value of the node label cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice
  --topology T         of a slice, such as 16x16 or 8x8x8
  --slices N           how many slices (default: 1)
  --chips N            chips a host (default: 4)
  --restarts N         how often the JobSet starts again after a failure that may pass (default: 20)
  --namespace NS       (default: default)
  --claim NAME         PersistentVolumeClaim to mount at /mnt/shared, which all pods may write to (ReadWriteMany)
  --account NAME       Kubernetes service account, which may write to the bucket (default: default)
  --dry-run            print the manifest and the command, and stop

  bash launch/gke.sh --name ego4d --image IMAGE --accelerator tpu-v5-lite-podslice --topology 16x16 \
      --claim runs -- train configs/ego4d_pretrain.py run=/mnt/shared/ego4d

The cluster needs JobSet (https://jobset.sigs.k8s.io), and the folder of the run has to lie on a file system that all
pods share, or in a bucket (run=gs://...). kubectl has to be signed in; nothing secret is taken or passed on.
TEXT
}

stop() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

declare -A GIVEN=([slices]=1 [chips]=4 [restarts]=20 [namespace]=default [account]=default [claim]="")
DRY=false
while (($#)); do
    case "$1" in
        --name | --image | --accelerator | --topology | --slices | --chips | --restarts | --namespace | --account | --claim)
            (($# > 1)) || stop "$1 needs a value"
            GIVEN["${1#--}"]="$2"
            shift
            ;;
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

# check NAME PATTERN WHAT: what goes into the manifest can close no quote and open no line.
check() {
    [[ "${GIVEN[$1]:-}" =~ ^($2)$ ]] || stop "--$1 is $3, found '${GIVEN[$1]:-}'"
}
check name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "small letters, digits and dashes, at most 40"
check namespace '[a-z0-9]([-a-z0-9]*[a-z0-9])?' "small letters, digits and dashes"
check account '[a-z0-9]([-.a-z0-9]*[a-z0-9])?' "small letters, digits, dots and dashes"
check accelerator '[a-z0-9][-a-z0-9]*' "a label such as tpu-v5-lite-podslice"
check topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}' "two or three numbers with x between them"
check image '[A-Za-z0-9][-A-Za-z0-9._/:@]*' "the name of an image"
check claim '([a-z0-9]([-.a-z0-9]*[a-z0-9])?)?' "small letters, digits, dots and dashes"
for name in slices chips restarts; do check "$name" '0|[1-9][0-9]*' "a whole number"; done

total=1
IFS=x read -ra sides <<<"${GIVEN[topology]}"
for side in "${sides[@]}"; do total=$((total * side)); done
((GIVEN[chips] > 0 && GIVEN[slices] > 0)) || stop "--chips and --slices are at least 1"
((total % GIVEN[chips] == 0)) || stop "${GIVEN[topology]} has $total chips, which are no multiple of ${GIVEN[chips]} a host"
GIVEN[hosts]=$((total / GIVEN[chips]))

# json WORD...: the words as a JSON list, which is YAML too.
json() {
    local word separator=""
    printf '['
    for word in "$@"; do
        [[ "$word" != *[[:cntrl:]]* ]] || stop "a word of the command holds a control character"
        # Kubernetes reads $(NAME) in a command as a variable, and $$(NAME) as itself.
        word="${word//\$(/\$\$(}"
        word="${word//\\/\\\\}"
        printf '%s"%s"' "$separator" "${word//\"/\\\"}"
        separator=", "
    done
    printf ']\n'
}
GIVEN[mounts]="[]" GIVEN[volumes]="[]"
if [[ -n "${GIVEN[claim]}" ]]; then
    GIVEN[mounts]='[{"name": "shared", "mountPath": "/mnt/shared"}]'
    GIVEN[volumes]='[{"name": "shared", "persistentVolumeClaim": {"claimName": "'"${GIVEN[claim]}"'"}}]'
fi
GIVEN[command]="$(json stvl "$@")"

manifest="$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")"
# The command last: a word of it may look like a place to fill in.
for name in name namespace account accelerator topology image slices chips restarts hosts mounts volumes command; do
    manifest=${manifest//@"${name^^}"@/"${GIVEN[$name]}"}
done

printf '%s\n' "$manifest"
printf '$ kubectl apply -f - <<the manifest above\n' >&2
if "$DRY"; then exit 0; fi
printf '%s\n' "$manifest" | kubectl apply -f -
