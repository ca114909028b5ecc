# Images of the service, its load test and its web page:  docker build --target server .  or  loadtest, or web
# For arm64 as for x86-64 (--platform linux/arm64): the pins have the hashes of both, nothing here is of one alone.
FROM python:3.11-slim-bookworm AS build
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/venv
COPY proto proto

# Pinned packages first: their layer outlives every change of our own code.
FROM build AS build-server
COPY requirements/server.txt requirements/
RUN pip install --no-deps --require-hashes -r requirements/server.txt
COPY server server
RUN pip install --no-deps --no-build-isolation ./proto ./server \
 && pip uninstall -y hatchling editables pathspec pluggy tomlkit trove-classifiers \
 && pip check \
 && pip uninstall -y setuptools pip

FROM build AS build-loadtest
COPY requirements/loadtest.txt requirements/
RUN pip install --no-deps --require-hashes -r requirements/loadtest.txt
COPY client client
RUN pip install --no-deps --no-build-isolation ./proto ./client \
 && pip check

FROM build AS build-web
COPY requirements/web.txt requirements/
RUN pip install --no-deps --require-hashes -r requirements/web.txt
COPY client client
COPY web web
RUN pip install --no-deps --no-build-isolation ./proto ./client ./web \
 && pip uninstall -y hatchling editables pathspec pluggy tomlkit trove-classifiers \
 && pip check \
 && pip uninstall -y setuptools pip

# Nothing of these needs to write, so all run with a read-only root; a number for the user lets Kubernetes see that it
# is not root.
FROM python:3.11-slim-bookworm AS loadtest
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 LOCUST_LOCUSTFILE=/app/loadtests/locustfile.py
WORKDIR /app
COPY --from=build-loadtest /opt/venv /opt/venv
COPY tests/data/mnist tests/data/mnist
COPY loadtests loadtests
USER 10001:10001
EXPOSE 8089
ENTRYPOINT ["locust"]

FROM python:3.11-slim-bookworm AS web
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DIGITS_WEB_HOST=0.0.0.0
WORKDIR /app
COPY --from=build-web /opt/venv /opt/venv
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the page is there. Whether the server is, the page says itself, and it waits for it.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["digits-web"]

FROM python:3.11-slim-bookworm AS server
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    DIGITS_SERVER_HOST=0.0.0.0 DIGITS_SERVER_METRICS_HOST=0.0.0.0 DIGITS_SERVER_MODELS=/app/models
WORKDIR /app
COPY --from=build-server /opt/venv /opt/venv
COPY deploy/docker/ready.py ./
COPY models models
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["python", "/app/ready.py"]
ENTRYPOINT ["digits-server"]
