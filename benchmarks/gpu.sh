#!/usr/bin/env bash
# Our contest-scale evidence, one command on a machine with a GPU (written for an H100, never run there yet):
# retokenise the shared text with the contest's tokenizer, train the 36M-parameter `golf` preset for MINUTES (default 8),
# score it, and draw bytes against BPB for the contest's packer and ours on the trained model. Before that, the kernels:
# their tests on the device and their benchmark; after it, the same on the trained model's artifact.
#     bash benchmarks/gpu.sh OUT_DIR        needs ../shared/data, torch with CUDA, brotli, zstandard, sentencepiece, numba,
#                                           triton, pytest, hypothesis
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?name a folder for results}
shared=../shared/data
export PYTHONPATH=. PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
mkdir -p "$out"
PGOLF_NEEDS_GPU=1 python3 -m pytest -m "gpu or not slow" tests/kernels tests/loading/test_on_device.py tests/scoring/test_static.py tests/scoring/test_bpb.py
python3 benchmarks/kernels.py --device cuda -o "$out/kernels.json"
tokenizer=$shared/tokenizers/fineweb_8192_bpe.model
[ -f "$out/train.bin" ] || python3 benchmarks/retokenize.py --shared "$shared" --tokenizer "$tokenizer" --out "$out"
python3 benchmarks/train_golf.py --data "$out/train.bin" --val "$out/val.bin" --tokenizer "$tokenizer" \
  --minutes "${MINUTES:-8}" --preset golf --device cuda --out "$out/golf"
python3 -m pgolf.cli sweep "$out/golf/checkpoint.pt" --data "$out/val.bin" --tokenizer "$tokenizer" --calib "$out/train.bin" \
  --tokens 65536 --budgets 10MB,13MB,16MB --methods auto,gptq --device cuda --jobs 1 -o "$out/frontier_golf36m"
python3 -m pgolf.cli pack "$out/golf/checkpoint.pt" --budget 16MB --calib "$out/train.bin" -o "$out/golf/golf.pgolf" --force
python3 -m pgolf.cli eval "$out/golf/golf.pgolf" --data "$out/val.bin" --tokenizer "$tokenizer" --device cuda --json \
  > "$out/eval_golf.json"
python3 benchmarks/kernels.py --device cuda --artifact "$out/golf/golf.pgolf" -o "$out/kernels_golf.json"
