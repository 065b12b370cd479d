# syntax=docker/dockerfile:1
#
#   docker build -t w2s .                                 for CPUs
#   docker build -t w2s:cuda --build-arg VARIANT=cuda .   for NVIDIA GPUs; the host provides the driver
#
#   docker run -p 8000:8000 -v w2s-models:/var/cache/w2s --read-only --tmpfs /tmp w2s
#
# The server writes to /var/cache/w2s (models) and /tmp only.
ARG PYTHON=3.11-slim-bookworm

# The dependencies change rarely, so they are a layer of their own that a new version of the server does not rebuild.
FROM python:${PYTHON} AS dependencies
ARG VARIANT=cpu
# PyPI's torch includes gigabytes of CUDA libraries; the CPU build has an index of its own.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/w2s
RUN case "$VARIANT" in \
      cpu) /opt/w2s/bin/pip install --no-cache-dir --no-deps ${TORCH_CPU_INDEX:+--index-url "$TORCH_CPU_INDEX"} \
             -c constraints.txt torch ;; \
      cuda) ;; \
      *) echo "VARIANT is cpu or cuda, not $VARIANT" >&2; exit 1 ;; \
    esac
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > requirements.txt \
 && /opt/w2s/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt

FROM dependencies AS wheel
COPY README.md LICENSE ./
COPY server server
COPY w2s_core w2s_core
RUN PIP_CONSTRAINT=constraints.txt /opt/w2s/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="w2s" \
      org.opencontainers.image.description="OpenAI-compatible server for weak-to-strong search" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/w2s w2s \
 && install --directory --owner w2s --group w2s /var/cache/w2s
COPY --from=dependencies /opt/w2s /opt/w2s
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/w2s/bin/pip install --no-cache-dir --no-deps /dist/*.whl
ENV PATH=/opt/w2s/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/w2s \
    XDG_CACHE_HOME=/var/cache/w2s \
    HF_HOME=/var/cache/w2s/huggingface \
    W2S_SERVER__HOST=0.0.0.0 \
    W2S_SERVER__PORT=8000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/cache/w2s
VOLUME /var/cache/w2s
EXPOSE 8000
# /health, not /ready: a container that is still loading its models must not be restarted as broken.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['W2S_SERVER__PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["w2s"]
CMD ["serve"]
