# The service: Python, the packages of the extra `service` at the versions of constraints.txt, no torch.
# Build from the top of the repository: docker build -f docker/service.Dockerfile -t debut-service .
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY docker/requirements.py docker/
RUN python -m venv --without-pip /opt/venv \
 && python docker/requirements.py service > requirements.txt \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
      --constraint constraints.txt --requirement requirements.txt
COPY docker/slim.py docker/
RUN python docker/slim.py /opt/venv

FROM ${PYTHON} AS source
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY index index
COPY service service
RUN python -m pip install --no-cache-dir --no-compile --no-deps --target /app .

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Debut: service" \
      org.opencontainers.image.description="Takes in new tracks, continues playlists with them, finds their audiences." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 debut \
 && useradd --uid 10001 --gid debut --no-create-home --home-dir /tmp --shell /usr/sbin/nologin --no-log-init debut \
 && install --directory --owner=debut --group=debut --mode=750 /releases /ledger
COPY --from=packages /opt/venv /opt/venv
COPY --from=source /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    DEBUT_HOST=0.0.0.0 \
    DEBUT_RELEASES=/releases \
    DEBUT_LEDGER=/ledger/ledger.sqlite
WORKDIR /app
# Compiles what is imported, and nothing else; and ends the build if slim.py removed too much.
RUN python -c "import service.__main__, service.decode.worker, index.__main__"
COPY docker/volumes.py /opt/volumes.py
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "service"]
