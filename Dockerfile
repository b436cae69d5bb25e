FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/alphaplus
ENV PATH=/opt/alphaplus/bin:$PATH
# The lock names every package with its hashes, and changes less often than the code.
COPY requirements.lock /src/
RUN pip install --no-deps --require-hashes -r /src/requirements.lock
COPY . /src
RUN pip install --no-deps --no-build-isolation /src

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent alphaplus
COPY --from=build /opt/alphaplus /opt/alphaplus
# The root file system is read-only when it runs.
ENV PATH=/opt/alphaplus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ALPHAPLUS_DATA_DIR=/tmp/alphaplus
USER 10001:10001
WORKDIR /tmp
CMD ["alphaplus", "--help"]
