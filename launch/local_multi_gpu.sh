#!/usr/bin/env bash
# Train on the GPUs of this machine with one process for each.
#
# One process uses all GPUs of a machine by itself: `python -m sisma_jax.train` alone is the usual
# way. This script is for trying out a run of many processes without a cluster, and for machines
# on which a process per GPU is faster.
#
# Usage:
#   launch/local_multi_gpu.sh --config FILE[:VARIANT] [TRAINING OPTIONS]
#
#   --dry-run   print the commands it would run, and run nothing
#   -h, --help  print this text
# All other arguments go to sisma_jax.train.
#
# Example, on the first two GPUs:
#   GPUS=2 launch/local_multi_gpu.sh --config configs/celeba.py --workdir runs/celeba
#
# TERM and Ctrl-C end all processes; they save first, and the same command continues. A second one
# kills them at once (status 137). When a process fails, the others get TERM, after GRACE seconds
# KILL, and the script ends with the status of the one that failed.
#
# Variables:
#   GPUS                  how many processes (default: one for every GPU)
#   CUDA_VISIBLE_DEVICES  the GPUs to choose from (default: all that nvidia-smi lists)
#   PORT                  a free port, for the processes to find each other (default: 12355)
#   GRACE                 seconds from TERM to KILL after a failure (default: 120)
#   PYTHON                the Python that has sisma_jax (default: python)
#
# Needs: bash 4.4 or newer; nvidia-smi, unless GPUS or CUDA_VISIBLE_DEVICES is set.
#
# It has not been run on real GPUs yet: only its dry run, and tests that stand in for the training.

set -euo pipefail

PORT=${PORT:-12355}
GRACE=${GRACE:-120}
PYTHON=${PYTHON:-python}

dry_run=false
has_config=false
arguments=()
for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n '2,/^$/ s/^# \?//p' "$0"
            exit
            ;;
        --dry-run)
            dry_run=true
            continue
            ;;
        --config | --config=*) has_config=true ;;
    esac
    arguments+=("$argument")
done
if ! $has_config; then
    echo "error: no config given: add --config FILE[:VARIANT]" >&2
    exit 2
fi

if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
else
    count=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')} || count=0
    mapfile -t devices < <(seq 0 $((count - 1)))
fi
processes=${GPUS:-${#devices[@]}}
if ((processes < 1)); then
    echo "error: no GPUs found: set GPUS to the number of processes" >&2
    exit 2
fi
if ((processes > ${#devices[@]})); then
    echo "error: GPUS is $processes, but CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES:" \
        "set GPUS to ${#devices[@]} or less" >&2
    exit 2
fi

stopping=false
signals=0
trap 'stopping=true; signals=$((signals + 1))' TERM INT

running=()
for ((i = 0; i < processes; i++)); do
    command=(env "CUDA_VISIBLE_DEVICES=${devices[i]}" "$PYTHON" -m sisma_jax.train
        --coordinator "localhost:$PORT" --processes "$processes" --process "$i" "${arguments[@]}")
    if $dry_run; then
        printf -v line '%q ' "${command[@]}"
        echo "${line% }"
    else
        "${command[@]}" &
        running+=("$!")
    fi
done

status=0
while ((${#running[@]} > 0)); do
    # In the background, as a signal ends a wait but would have to wait for a sleep.
    sleep 0.5 &
    wait "$!" || true

    if ((signals > 1)); then
        kill -KILL "${running[@]}" 2>/dev/null || true # the training would outlive a second TERM
    elif $stopping; then
        stopping=false
        kill -TERM "${running[@]}" 2>/dev/null || true # INT would be ignored in the background
    fi

    left=()
    for process in "${running[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            left+=("$process")
            continue
        fi
        ended=0
        wait "$process" || ended=$?
        if ((ended != 0 && status == 0)); then
            status=$ended
            deadline=$((SECONDS + GRACE))
            stopping=true
            if ((signals < 2)); then
                echo "error: a process ended with status $status: ending the others" >&2
            fi
        fi
    done
    running=("${left[@]}")

    if ((status != 0 && SECONDS >= deadline)); then
        kill -KILL "${running[@]}" 2>/dev/null || true
    fi
done
exit "$status"
