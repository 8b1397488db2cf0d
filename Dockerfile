# syntax=docker/dockerfile:1
# Two images of one project:  docker build --target worker .    docker build --target trainer .
# tests/test_compose.py reads this file; it has not been built where it was written (no Docker engine there).

FROM python:3.11-slim AS base
ENV PATH=/opt/xplat/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/xplat

# Dependencies first: they change seldom, so their layer is kept. Every file is checked against its hash.
FROM base AS worker-build
COPY requirements/worker.txt /build/requirements/worker.txt
RUN pip install --require-hashes -r /build/requirements/worker.txt
COPY pyproject.toml README.md LICENSE /build/
COPY xplat_stream /build/xplat_stream
COPY streams /build/streams
COPY trainer /build/trainer
COPY benchmarks /build/benchmarks
RUN pip install --no-deps /build

FROM base AS trainer-build
COPY requirements/trainer.txt /build/requirements/trainer.txt
RUN pip install --require-hashes -r /build/requirements/trainer.txt
COPY pyproject.toml README.md LICENSE /build/
COPY xplat_stream /build/xplat_stream
COPY streams /build/streams
COPY trainer /build/trainer
COPY benchmarks /build/benchmarks
RUN pip install --no-deps /build

# What both run as and in: no root, and folders that a new volume takes content and owner from.
FROM base AS runtime
RUN useradd --uid 10001 --create-home xplat \
 && mkdir -p /srv/releases/model_repo /var/lib/xplat \
 && chown -R xplat:xplat /srv/releases /var/lib/xplat
# File by file: versions generated on the building machine do not belong in an image.
COPY --chown=xplat:xplat model_repo/interest_encoder/config.pbtxt /srv/releases/model_repo/interest_encoder/
COPY --chown=xplat:xplat model_repo/interest_head/config.pbtxt /srv/releases/model_repo/interest_head/
COPY --chown=xplat:xplat model_repo/interest_fused/config.pbtxt /srv/releases/model_repo/interest_fused/
RUN chown xplat:xplat /srv/releases/model_repo/interest_*
USER xplat
WORKDIR /home/xplat

FROM runtime AS worker
COPY --from=worker-build /opt/xplat /opt/xplat
CMD ["xplat", "worker"]

FROM runtime AS trainer
COPY --from=trainer-build /opt/xplat /opt/xplat
CMD ["xplat", "train", "--from-topic"]
