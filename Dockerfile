# Two images of one program: `slim` computes on CPUs, `cuda` on NVIDIA GPUs.
#
#   docker build --target slim --tag headrace:slim .
#   docker build --target cuda --tag headrace:cuda .
#
# Only instructions that every builder since Docker 19.03 knows. The two targets stand one behind the other, because the
# classic builder builds all that stands before its target.

ARG PYTHON_IMAGE=python:3.12-slim-bookworm
# The version of CUDA that PyPI's torch is built with.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1
ARG CUDA_PACKAGES=13-0

# -- slim ------------------------------------------------------------------------------------------------------------

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build-slim
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
RUN python -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What changes least comes first, so that a changed source costs seconds: torch, the other requirements, ourselves.
RUN pip install --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION"
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], *project['optional-dependencies']['int8'], sep='\n')" \
    > requirements.txt && pip install --requirement requirements.txt
COPY . ./
RUN pip install --no-deps .

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS slim
# The folder of the models belongs to the user, and so does a new volume that is mounted over it.
RUN groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid headrace --no-create-home --home-dir /tmp --shell /usr/sbin/nologin headrace \
    && install --directory --owner=headrace --group=headrace /models
COPY --from=build-slim /opt/headrace /opt/headrace
# PYTHONSAFEPATH: no module out of the working directory.
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    HEADRACE_CACHE_DIR=/models
USER 10001:10001
WORKDIR /models
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s CMD ["headrace", "health"]
CMD ["headrace", "--help"]

# -- cuda ------------------------------------------------------------------------------------------------------------

# hadolint ignore=DL3006
FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS build-cuda
ARG TORCH_VERSION=2.13.0
WORKDIR /source
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install "torch==$TORCH_VERSION"
COPY pyproject.toml ./
# PyCUDA has no wheels: this compiles it.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], *project['optional-dependencies']['gpu'], sep='\n')" \
    > requirements.txt && pip install --requirement requirements.txt
COPY . ./
RUN pip install --no-deps .

# hadolint ignore=DL3006
FROM ${CUDA_IMAGE}-base-ubuntu24.04 AS cuda
ARG CUDA_PACKAGES
# Kernels are compiled when they first run, for the card and the model that are there (kernels/build.py): a kernel is
# specialised by a dozen shapes, and machine code for all of them would be larger than the compiler. Hence nvcc and g++,
# and of the libraries what PyCUDA itself is linked to. Machine code is kept in the volume of the models.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        "cuda-minimal-build-${CUDA_PACKAGES}" "libcurand-${CUDA_PACKAGES}" g++ python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid headrace --no-create-home --home-dir /tmp --shell /usr/sbin/nologin headrace \
    && install --directory --owner=headrace --group=headrace /models
COPY --from=build-cuda /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    HEADRACE_CACHE_DIR=/models HEADRACE_DEVICE=cuda
USER 10001:10001
WORKDIR /models
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s CMD ["headrace", "health"]
CMD ["headrace", "--help"]
