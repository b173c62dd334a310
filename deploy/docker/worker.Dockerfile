# Prefill and decode workers: Baton and Ray with torch, Triton and NIXL. Built from the repository's root:
#   docker build -f deploy/docker/worker.Dockerfile -t baton-worker:0.1.0 .
# With `--build-arg LMCACHE=1` it can run the chart's LMCache servers, too (600 MB more).
# torch's wheels bring CUDA's libraries; the driver comes from the node (NVIDIA's container toolkit).
ARG PYTHON=3.11.14-slim-bookworm
FROM python:${PYTHON} AS build

ARG LMCACHE=
WORKDIR /build
RUN python -m venv /opt/baton
ENV PATH=/opt/baton/bin:$PATH
COPY constraints.txt pyproject.toml ./
# Packages first, so that a change of the code alone does not install them again.
RUN pip install --no-cache-dir --no-compile "setuptools==80.9.0" "wheel==0.45.1" \
    && python -c "import os, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print(*p['dependencies'], *e['cluster'], *e['worker'], *e['otel'], *(e['lmcache'] if os.environ.get('LMCACHE') else []), sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --no-compile -r requirements.txt -c constraints.txt
COPY . .
# The small model goes beside the code, where Baton looks for it.
RUN pip install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
    && cp -r models "$(python -c 'import baton; print(list(baton.__path__)[0])')/" \
    && python -c "import baton.decode_worker.worker, baton.prefill_worker.worker" \
    && baton config check /dev/null

FROM python:${PYTHON}
# Triton compiles its launchers with a C compiler; the libraries are RDMA's user space, for NIXL over UCX.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev ibverbs-providers libibverbs1 libnuma1 librdmacm1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 baton && useradd --uid 1000 --gid 1000 --create-home baton
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/baton
CMD ["baton", "--help"]
