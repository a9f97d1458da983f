# The trainer: torch and the packages of the extra `train` at the versions of constraints.txt, and the demo's data.
# Build from the top of the repository: docker build -f docker/trainer.Dockerfile -t debut-trainer .
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
# PyPI's torch brings CUDA along, several gigabytes; this index has the build for CPUs, for amd64 and arm64.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=train
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
      --index-url "$TORCH_INDEX" torch
COPY pyproject.toml ./
COPY docker/requirements.py docker/
# shellcheck disable=SC2086
RUN python docker/requirements.py $EXTRAS > requirements.txt \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Debut: trainer" \
      org.opencontainers.image.description="Learns where a track belongs, and publishes releases for the service." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 debut \
 && useradd --uid 10001 --gid debut --no-create-home --home-dir /scratch --shell /usr/sbin/nologin --no-log-init debut \
 && install --directory --owner=debut --group=debut --mode=750 /releases /scratch
COPY --from=packages /opt/venv /opt/venv
COPY demo /app/demo
COPY index /app/index
COPY training /app/training
COPY docker/demo-release /usr/local/bin/demo-release
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/scratch \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /scratch
USER 10001:10001
CMD ["demo-release"]
