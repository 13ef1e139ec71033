#!/bin/sh
# What a CUDA GPU is asked to show of the state-space dual, in about five minutes: parity with the CPU and with mamba-ssm's
# Triton kernels, then speed. Run from the root of the repository:
#
#     PYTHONPATH=src[:FOLDER_WITH_MAMBA_SSM] sh benchmarks/gpu_ssd_check.sh [FOLDER_FOR_RESULTS]
#
# Without mamba-ssm its tests are skipped and its rows are missing.
out=${1:-.}
python3 -m pytest -m gpu tests/layers/mixers -p no:cacheprovider -q --durations=0 2>&1 | tail -30

# float32 as it is, then with TF32 products, as mamba-ssm's kernels take them
python3 benchmarks/ssd.py --heads 30 --tokens 1024 4096 15648 --dtype float32 --rounds 5 --memory-at 4096 \
    --leave-out minimal_ssd_chunk128 minimal_ssd_chunk256 --plot "$out/ssd_float32.png"
python3 benchmarks/ssd.py --heads 30 --tokens 1024 2048 4096 8192 15648 32768 --dtype bfloat16 --rounds 5 --compile \
    --products high --memory-at 4096 15648 --plot "$out/ssd_bfloat16.png"
cp benchmarks/results/ssd.csv "$out/"
