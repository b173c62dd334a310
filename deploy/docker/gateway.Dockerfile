# The head and the gateways: Baton and Ray, without torch. Built from the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t baton-gateway:0.1.0 .
ARG PYTHON=3.11.14-slim-bookworm
FROM python:${PYTHON} AS build

WORKDIR /build
RUN python -m venv /opt/baton
ENV PATH=/opt/baton/bin:$PATH
COPY constraints.txt pyproject.toml ./
# Packages first, so that a change of the code alone does not install them again.
RUN pip install --no-cache-dir --no-compile "setuptools==80.9.0" "wheel==0.45.1" \
    && python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['cluster'], *p['optional-dependencies']['otel'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --no-compile -r requirements.txt -c constraints.txt
COPY . .
# The small model goes beside the code, where Baton looks for it.
RUN pip install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
    && cp -r models "$(python -c 'import baton; print(list(baton.__path__)[0])')/" \
    && python -c "import baton.cluster.app, importlib.util as u; assert u.find_spec('torch') is None" \
    && baton config check /dev/null

FROM python:${PYTHON}
RUN groupadd --gid 1000 baton && useradd --uid 1000 --gid 1000 --create-home baton
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
USER 1000:1000
WORKDIR /home/baton
EXPOSE 8000 8001
CMD ["baton", "--help"]
