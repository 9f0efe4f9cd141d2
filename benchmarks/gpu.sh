#!/usr/bin/env bash
# Everything that has to be seen on a GPU, in one call: bash benchmarks/gpu.sh DATA_DIR OUT [RUNS]
# DATA_DIR holds cifar-10-batches-py; records go to OUT. Prints progress as it goes.
set -euo pipefail
data=${1:?give the folder that holds cifar-10-batches-py}
out=${2:?give a folder for the records}
runs=${3:-10}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 RESFIT_DATA_DIR=$data RESFIT_OFFLINE=1

nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
python3 -m pytest -m gpu tests || echo "GPU tests failed: see above"
python3 -m resfit train cifar10-94 --device cuda --runs "$runs" --out "$out/runs"
python3 -m resfit report "$out/runs" --out "$out/report.html"
find "$out/runs" \( -name state.pt -o -name '*.safetensors' \) -delete
