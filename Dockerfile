# One image for every process of ours: code servers, web server, daemon, workers, migrations, the simulated exchange.
# It needs no BuildKit.
FROM python:3.13.15-slim-trixie AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /opt/venv
# pip checks every file against the lock's hashes; the lock is complete, so there is nothing to resolve or to compile.
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --no-deps --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY deploy/local deploy/local
COPY sql sql
COPY dhan_pipeline dhan_pipeline
# What only installs, headers and tests serve nobody afterwards.
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/pip uninstall --yes hatchling editables pip \
    && find /opt/venv -type d \( -name include -o -name tests \) -prune -exec rm -r {} +


FROM python:3.13.15-slim-trixie

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dhan-pipeline" \
      org.opencontainers.image.description="Tick capture for Indian markets: every byte on disk first, every hour rebuildable" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Debian keeps one version of a package; a pinned one would be gone with its next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin dhan \
    # Volumes that are made over these folders belong to the user, as they do.
    && install --directory --owner dhan --group dhan /data /app/data /app/dagster /app/dagster/storage

COPY --from=build /opt/venv /opt/venv
COPY deploy/compose/entrypoint.sh /usr/local/bin/dhan-entrypoint
COPY deploy/postgres/dagster.yaml deploy/postgres/workspace.yaml /app/dagster/

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DAGSTER_HOME=/app/dagster \
    DATA_DIR=/data
WORKDIR /app
USER 10001:10001
# With -g the whole process group gets SIGTERM. Dagster's code server alone would wait for its runs and not tell them.
ENTRYPOINT ["tini", "-g", "--", "dhan-entrypoint"]
CMD ["dhan-pipeline", "--help"]
