# Worker of the infinitetalk engine on NVIDIA GPUs (compute capability 8.0 and up). Build from the repository's root:
#   docker build -f deploy/docker/worker.Dockerfile -t infinite-talk-worker .
# torch's wheels bring CUDA's libraries; the base brings the compiler that Triton calls and nothing else of CUDA.
FROM python:3.11.14-slim-bookworm AS packages
WORKDIR /app
ARG TORCH=torch==2.13.0
COPY requirements/gpu.txt requirements/
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir "${TORCH}" \
    && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/gpu.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY kernels kernels
COPY model_store model_store
COPY service service
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11.14-slim-bookworm
# Triton builds its launchers with a C compiler at the first use of a kernel.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp infinitetalk
COPY --from=packages /venv /venv
COPY LICENSE NOTICE /licenses/
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=/tmp/triton \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    INFINITETALK_ENGINES=infinitetalk INFINITETALK_MODELS=/models INFINITETALK_WORKER_HOST=0.0.0.0
WORKDIR /tmp
USER 10001
EXPOSE 3001
# Loading the model takes minutes; it is alive meanwhile, and ready after.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3001/livez', timeout=2)"]
CMD ["infinitetalk", "worker"]
