#!/bin/sh
# What a CUDA GPU is asked to show of the state-space dual, in at most ten minutes: speed, then parity with the CPU and with
# mamba-ssm's Triton kernels. Run from the root of the repository:
#
#     PYTHONPATH=src[:FOLDER_WITH_MAMBA_SSM] sh benchmarks/gpu_ssd_check.sh [FOLDER_FOR_RESULTS]
#
# Without mamba-ssm its tests are skipped and its rows are missing. Most of the time its kernels are being compiled.
out=${1:-.}

# with TF32 products where a candidate allows them, as mamba-ssm's kernels do
timeout 280 python3 benchmarks/ssd.py --heads 30 --tokens 1024 4096 15648 32768 --dtype bfloat16 --rounds 5 --compile \
    --products high --memory-at 4096 15648 --plot "$out/ssd_bfloat16.png" \
    --leave-out minimal_ssd_chunk128 minimal_ssd_chunk256
cp benchmarks/results/ssd.csv "$out/"
# without the shape checks of the other tests, which need beartype
timeout 170 python3 -m pytest --noconftest -m gpu tests/layers/mixers -p no:cacheprovider 2>&1 | tail -40
timeout 100 python3 benchmarks/ssd.py --heads 30 --tokens 1024 4096 15648 --dtype float32 --rounds 5 --memory-at 4096 \
    --leave-out minimal_ssd_chunk128 minimal_ssd_chunk256 --plot "$out/ssd_float32.png"
cp benchmarks/results/ssd.csv "$out/"
