# vidlab in a container, for a CPU or for an NVIDIA GPU. Build at the root of the repository:
#
#   docker build --target cpu -t vidlab:cpu --build-arg TORCH_INDEX=<index of torch's CPU builds> .
#   docker build --target cuda -t vidlab:cuda .
#
# and run with a folder for what runs write:
#
#   docker run --rm -v "$PWD/work:/work" vidlab:cpu python /vidlab/train.py trainer.max_steps=200
#   docker run --rm --gpus all -v "$PWD/work:/work" vidlab:cuda python /vidlab/train.py trainer=gpu
FROM python:3.11-slim AS base

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIDLAB_CACHE=/work/cache

# a C++ compiler for compile=true and Triton, git for the provenance of runs; Debian keeps no older versions to pin
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /vidlab
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY conf ./conf
COPY experiments ./experiments
COPY src ./src
COPY train.py generate.py evaluate.py curate.py ./

FROM base AS cpu

# where torch's CPU builds are, as pytorch.org tells; without it pip takes the CUDA build, which runs on a CPU as well
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install "$(grep '^torch==' requirements.txt)" --index-url "$TORCH_INDEX"; \
    fi \
    && pip install -r requirements.txt
WORKDIR /work
CMD ["python", "/vidlab/train.py"]

FROM base AS cuda

# the pinned torch is a CUDA build and brings its own CUDA libraries; the host brings the driver
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install -r requirements.txt

# set C of requirements-gpu.txt, on request: --build-arg WITH_MAMBA=1
ARG WITH_MAMBA=""
RUN if [ -n "$WITH_MAMBA" ]; then \
        pip install wheel==0.48.0 ninja==1.13.2 setuptools==84.2.1 \
        && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
            pip install --no-deps --no-build-isolation mamba-ssm==2.3.2.post1; \
    fi
WORKDIR /work
CMD ["python", "/vidlab/train.py", "trainer=gpu"]
