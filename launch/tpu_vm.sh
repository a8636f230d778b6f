#!/usr/bin/env bash
# Train on a Cloud TPU slice: the same command on all of its workers, over ssh by gcloud.
#
# Usage, on any machine with gcloud:
#   launch/tpu_vm.sh [--tpu NAME] [--zone ZONE] --install
#   launch/tpu_vm.sh [--tpu NAME] [--zone ZONE] --config FILE[:VARIANT] [TRAINING OPTIONS]
#   launch/tpu_vm.sh [--tpu NAME] [--zone ZONE] --stop
#
#   --install   copy the last commit of this checkout to all workers and install it there
#   --stop      have the training save and end; the command that started it continues it
#   --dry-run   print the commands it would run, and run nothing
#   -h, --help  print this text
# All other arguments go to sisma_jax.train.
#
# Example:
#   export TPU_NAME=my-slice ZONE=us-central2-b
#   launch/tpu_vm.sh --install
#   launch/tpu_vm.sh --config configs/celeba.py --config.data.path=/mnt/share/celeba-256 \
#       --workdir /mnt/share/runs/celeba
#   gcloud compute tpus tpu-vm ssh my-slice --zone=us-central2-b \
#       --command='tail -f sisma_jax/train.log'
#
# The training runs in a tmux session, which a lost connection does not end and of which there can
# be one; what it prints is in train.log on each worker.
#
# Variables:
#   TPU_NAME, ZONE  of the slice; --tpu and --zone override them
#   DIR             the installation on every worker, on a disk of its own (default: sisma_jax)
#   PYTHON          a Python of the workers, from which --install makes the virtual environment
#                   (default: python3)
#
# Needs: a slice that exists, this script makes none; an ssh key that gcloud can use without asking;
# on the workers tmux and Python 3.11 or newer with venv (Ubuntu 22.04 has 3.10 only). Data and run
# folder have to be on storage that all workers share: Filestore or other NFS, or a bucket mounted
# by gcsfuse; an address (gs://) as --workdir is refused.
#
# It has not been run on a real slice yet: only its dry run, and tests that stand in for gcloud.

set -euo pipefail

DIR=${DIR:-sisma_jax}
PYTHON=${PYTHON:-python3}

task=train
dry_run=false
has_config=false
arguments=()
while (($# > 0)); do
    case $1 in
        -h | --help)
            sed -n '2,/^$/ s/^# \?//p' "$0"
            exit
            ;;
        --dry-run) dry_run=true ;;
        --install) task=install ;;
        --stop) task=stop ;;
        --tpu=*) TPU_NAME=${1#*=} ;;
        --zone=*) ZONE=${1#*=} ;;
        --tpu | --zone)
            if (($# < 2)); then
                echo "error: $1 needs a value" >&2
                exit 2
            fi
            if [[ $1 == --tpu ]]; then TPU_NAME=$2; else ZONE=$2; fi
            shift
            ;;
        --config | --config=*)
            has_config=true
            arguments+=("$1")
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
if [[ -z ${TPU_NAME:-} || -z ${ZONE:-} ]]; then
    echo "error: no slice given: add --tpu NAME --zone ZONE, or set TPU_NAME and ZONE" >&2
    exit 2
fi
if [[ $task == train ]] && ! $has_config; then
    echo "error: no config given: add --config FILE[:VARIANT]" >&2
    exit 2
fi

# The words as a shell reads them back, in quotes where they need them.
quoted() {
    local word line=
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}

run() {
    if $dry_run; then quoted "$@"; else "$@"; fi
}

on_all_workers() {
    run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

case $task in
    install)
        root=$(cd "$(dirname "$0")/.." && pwd)
        archive=${TMPDIR:-/tmp}/sisma_jax-$(git -C "$root" rev-parse --short HEAD).tar.gz
        dir=$(quoted "$DIR")
        run git -C "$root" archive --output="$archive" HEAD
        run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:sisma_jax.tar.gz" \
            --zone="$ZONE" --worker=all
        run rm "$archive"
        on_all_workers "mkdir -p $dir && tar -xzf sisma_jax.tar.gz -C $dir && cd $dir && \
$(quoted "$PYTHON") -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
        ;;
    train)
        training=$(quoted .venv/bin/python -m sisma_jax.train --distributed "${arguments[@]}")
        session=$(quoted tmux new-session -d -s sisma_jax "exec $training >>train.log 2>&1")
        on_all_workers "cd $(quoted "$DIR") && $session"
        ;;
    stop)
        on_all_workers "tmux send-keys -t sisma_jax C-c"
        ;;
esac
