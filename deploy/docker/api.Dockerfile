# API, and worker of the portrait engine: the same packages, no torch. Build from the repository's root:
#   docker build -f deploy/docker/api.Dockerfile -t infinite-talk-api .
FROM python:3.11.14-slim-bookworm AS packages
WORKDIR /app
COPY requirements/service.txt requirements/
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/service.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY kernels kernels
COPY model_store model_store
COPY service service
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /tmp infinitetalk
COPY --from=packages /venv /venv
COPY LICENSE NOTICE /licenses/
# The root file system may be read-only: what is written goes to /tmp, and to /data where no object store is set.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 BENTOML_DO_NOT_TRACK=True BENTOML_HOME=/tmp/bentoml \
    INFINITETALK_DATA_DIR=/data INFINITETALK_HOST=0.0.0.0 INFINITETALK_METRICS_HOST=0.0.0.0 INFINITETALK_METRICS_PORT=3002 \
    INFINITETALK_WORKER_HOST=0.0.0.0
WORKDIR /tmp
USER 10001
EXPOSE 3000 3001 3002
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3002/livez', timeout=2)"]
CMD ["bentoml", "serve", "service.bento:InfiniteTalk", "--host", "0.0.0.0", "--port", "3000"]
