#!/usr/bin/env bash
# Everything that has to be seen on a GPU, in one call of less than 9 minutes; records, a page and a log go to OUT.
#   bash benchmarks/gpu.sh DATA_DIR OUT [--airbench CHECKOUT] [--runs N] [--compile] [--parts "step 94"] [--dry-run]
# DATA_DIR holds cifar-10-batches-py. Parts: tests ceiling step 94 95 96 scaling. A part that would begin too late is
# left out, so give fewer parts for more runs. Runs and records come packed, as OUT/runs.tar.gz. --compile trains by
# torch.compile. --dry-run tries each part on the CPU, with as little work as it can.
set -euo pipefail
data=${1:?give the folder that holds cifar-10-batches-py}
out=${2:?give a folder for the records}
shift 2
airbench=() runs="" fields=() parts="tests ceiling step 94 95 96 scaling" dry="" end=510
while [ $# -gt 0 ]; do
    case $1 in
        --airbench) airbench=(--airbench "$(realpath "$2")") && shift 2 ;;
        --runs) runs=$2 && shift 2 ;;
        --compile) fields=(--train.compile true) && shift ;;
        --parts) parts=$2 && shift 2 ;;
        --dry-run) dry=yes end=86400 && shift ;;
        *) echo "error: unknown option ($1): see the head of $0" >&2 && exit 2 ;;
    esac
done
if [ ! -d "$data/cifar-10-batches-py" ]; then
    echo "error: no cifar-10-batches-py in $data: give the folder that holds it" >&2 && exit 2
fi
mkdir -p "$out"
data=$(realpath "$data") out=$(realpath "$out")
exec > >(tee "$out/log.txt") 2>&1
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 RESFIT_DATA_DIR=$data RESFIT_OFFLINE=1
records=(--out "$out/records")
kept=$(mktemp -d)

# What the runs left, but for their states and weights: a few KB each; and the records, to have all in one file.
pack() {
    cp -r "$out/records" "$kept" || true
    find "$kept" \( -name 'state*.pt' -o -name '*.safetensors' \) -delete
    tar -C "$kept" -czf "$out/runs.tar.gz" . && rm -rf "$kept" "$out/records"
}
trap pack EXIT

left() { echo $((end - SECONDS)); }

# Run one part's command, unless the time is up; a part that fails does not stop the others.
part() {
    printf '\n== %s (%s s)\n' "$1" "$SECONDS"
    if [ "$(left)" -lt 20 ]; then echo "left out: the time is up" && return; fi
    timeout -k 10 "$(left)" "${@:2}" || echo "$1 failed or was stopped (exit $?)"
}

bench() { part "$1" python3 "benchmarks/$1.py" "${@:2}" "${records[@]}"; }

to_accuracy() { # target in percent, runs; either side gets half of the time that is left, less a minute for the rest
    local sides=$((${#airbench[@]} ? 2 : 1))
    if [ "$(left)" -lt 120 ]; then printf '\n== to_accuracy %s left out: the time is up\n' "$1" && return; fi
    local how=(--recipe "cifar10-$1" --runs "${runs:-$2}" --limit $((($(left) - 60) / sides)) --keep "$kept/$1")
    how+=(--seed 100) # the seeds below are those of runs on CPUs
    if [ "$dry" ]; then how=(--device cpu --recipe digits --runs 1 --epochs 1 --images 2000 --keep "$kept/$1"); fi
    bench to_accuracy "$data" --target "0.$1" "${how[@]}" "${airbench[@]}" "${fields[@]}"
}

if [ "$dry" ]; then
    small=(--device cpu --rounds 1) kernels=(--side 128 --batch 4)
    loop=(--steps 1 --seconds 0.1 --side 128) growth=(--steps 1 --seconds 0.1 --images 500)
else
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
    export RESFIT_KERNELS=0 # they are for CPUs, and take a minute to compile
    small=(--device cuda --rounds 1) kernels=() loop=(--seconds 3 --compile) growth=(--seconds 3)
fi
for name in $parts; do
    case $name in
        tests) part tests python3 -m pytest -m gpu tests/system/test_gpu.py tests/augment/test_augment.py ;;
        ceiling) bench ceiling "${small[@]}" "${kernels[@]}" --recipe cifar10-94 ;;
        step) bench step "$data" "${small[@]}" "${loop[@]}" --recipe cifar10-94 cifar10-96 --precision bf16 ;;
        94) to_accuracy 94 20 ;;
        95) to_accuracy 95 6 ;;
        96) to_accuracy 96 3 ;;
        scaling) bench scaling "${small[@]}" "${growth[@]}" --only images width ;;
        *) echo "error: unknown part ($name): see the head of $0" >&2 && exit 2 ;;
    esac
done
end=$((SECONDS + 30))
part page python3 benchmarks/page.py "$out/records" --out "$out/benchmarks.html"
