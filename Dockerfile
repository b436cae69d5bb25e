FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/alphaplus
ENV PATH=/opt/alphaplus/bin:$PATH
# The lock has every package's version and hashes, and changes less often than the code.
COPY requirements.lock /src/
RUN pip install --require-hashes --only-binary :all: -r /src/requirements.lock
COPY . /src
RUN pip install --no-deps /src

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent alphaplus
COPY --from=build /opt/alphaplus /opt/alphaplus
ENV PATH=/opt/alphaplus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
CMD ["alphaplus", "--help"]
