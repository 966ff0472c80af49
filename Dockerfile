# One image for every role of statebroker: workers, command line, and the demo's producers.
#
# Without a network: fill wheelhouse/ first, and name a local base image; scripts/images does both.
#   docker build --build-arg BASE_IMAGE=... .

ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
LABEL org.opencontainers.image.title="statebroker"
ARG WHEELHOUSE=wheelhouse
# The asterisk makes the folder optional: without it COPY takes pyproject.toml alone.
COPY pyproject.toml ${WHEELHOUSE}* /wheelhouse/
WORKDIR /src
# Dependencies in a separate layer, because they change rarely.
COPY pyproject.toml ./
RUN python3 -m venv /opt/statebroker \
    && if ls /wheelhouse/*.whl >/dev/null 2>&1; then \
        printf '[global]\nno-index = true\nfind-links = /wheelhouse\n' >/opt/statebroker/pip.conf; \
    fi \
    && python3 -c 'import tomllib; told = tomllib.load(open("pyproject.toml", "rb")); print(*told["project"]["dependencies"], *told["project"]["optional-dependencies"]["server"], sep="\n")' \
        >/requirements.txt \
    && /opt/statebroker/bin/pip install --no-cache-dir --disable-pip-version-check --requirement /requirements.txt
COPY README.md LICENSE ./
COPY broker broker
COPY workers workers
RUN /opt/statebroker/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && /opt/statebroker/bin/pip uninstall --quiet --yes pip setuptools

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="statebroker" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin statebroker
COPY --from=build /opt/statebroker /opt/statebroker
WORKDIR /app
COPY scripts/flights scripts/flights
ENV PATH=/opt/statebroker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER statebroker
# Healthy: the workers of `serve` in this container are. With another command give another role, as docker-compose.yml
# does: `statebroker status --help`.
HEALTHCHECK --interval=30s --timeout=30s --start-period=30s --retries=2 \
    CMD ["statebroker", "status", "--check", "--role", "flush", "--role", "schedule", "--here"]
ENTRYPOINT ["statebroker"]
CMD ["serve"]
