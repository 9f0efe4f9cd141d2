#!/usr/bin/env bash
# Everything that has to be seen on a GPU, in one call of less than 9 minutes; records and a page go to OUT.
#   bash benchmarks/gpu.sh DATA_DIR OUT [--airbench CHECKOUT] [--runs N] [--parts "ceiling 94"] [--dry-run]
# DATA_DIR holds cifar-10-batches-py. Parts: tests ceiling step 94 95 96 scaling. A part that would begin too late is
# left out, so give fewer parts for more runs. --dry-run tries each part on the CPU, with as little work as it can.
set -euo pipefail
data=${1:?give the folder that holds cifar-10-batches-py}
out=${2:?give a folder for the records}
shift 2
airbench=() runs="" parts="tests ceiling step 94 95 96 scaling" dry="" end=520
while [ $# -gt 0 ]; do
    case $1 in
        --airbench) airbench=(--airbench "$(realpath "$2")") && shift 2 ;;
        --runs) runs=$2 && shift 2 ;;
        --parts) parts=$2 && shift 2 ;;
        --dry-run) dry=yes end=86400 && shift ;;
        *) echo "error: unknown option ($1): see the head of $0" >&2 && exit 2 ;;
    esac
done
mkdir -p "$out"
data=$(realpath "$data") out=$(realpath "$out")
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 RESFIT_DATA_DIR=$data RESFIT_OFFLINE=1
records=(--out "$out/records")

# Run one part's command, unless the time is up; a part that fails does not stop the others.
part() {
    local left=$((end - SECONDS))
    printf '\n== %s (%s s)\n' "$1" "$SECONDS"
    if [ $left -lt 20 ]; then echo "left out: the time is up" && return; fi
    timeout "$left" "${@:2}" || echo "$1 failed or was stopped (exit $?)"
}

bench() { part "$1" python3 "benchmarks/$1.py" "${@:2}" "${records[@]}"; }

to_accuracy() { # target in percent, runs
    local how=(--recipe "cifar10-$1" --runs "${runs:-$2}" --limit 150 --keep "$out/runs-$1")
    if [ "$dry" ]; then how=(--device cpu --recipe digits --runs 1 --epochs 1 --images 2000); fi
    bench to_accuracy "$data" --target "0.$1" "${how[@]}" "${airbench[@]}"
}

if [ "$dry" ]; then
    small=(--device cpu --rounds 1) kernels=(--side 128 --batch 4)
    loop=(--steps 1 --seconds 0.1 --side 128) growth=(--steps 1 --seconds 0.1 --images 500)
else
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
    small=(--device cuda --rounds 1) kernels=() loop=(--seconds 3) growth=(--seconds 3)
fi
for name in $parts; do
    case $name in
        tests) part tests python3 -m pytest -m gpu tests ;;
        ceiling) bench ceiling "${small[@]}" "${kernels[@]}" --recipe cifar10-94 ;;
        step) bench step "$data" "${small[@]}" "${loop[@]}" --recipe cifar10-94 --precision bf16 ;;
        94) to_accuracy 94 20 ;;
        95) to_accuracy 95 6 ;;
        96) to_accuracy 96 3 ;;
        scaling) bench scaling "${small[@]}" "${growth[@]}" --only images width ;;
        *) echo "error: unknown part ($name): see the head of $0" >&2 && exit 2 ;;
    esac
done
find "$out" \( -name state.pt -o -name '*.safetensors' \) -path "$out/runs-*" -delete
part page python3 benchmarks/page.py "$out/records" --out "$out/benchmarks.html"
