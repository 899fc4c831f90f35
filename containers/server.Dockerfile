# edgese for servers: recordings, Triton's model repository, bundles of the Hub. No PyTorch, no compiler, no root.
#
#   docker build -f containers/server.Dockerfile -t edgese .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" edgese enhance noisy.wav

# The Python that constraints-3.11.txt was tested with.
FROM python:3.11-slim-bookworm AS build
# Further extras, as "[triton,hub]"; those with PyTorch do not belong here.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints-3.11.txt ./
COPY calib calib/
COPY export export/
COPY runtimes runtimes/
COPY edgese edgese/
RUN python -m venv /opt/edgese \
    && /opt/edgese/bin/python -m pip install --no-cache-dir -c constraints-3.11.txt ".${EXTRAS}"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/edgese /opt/edgese
RUN useradd --uid 10001 --no-create-home edgese \
    && install -d -o edgese -m 1777 /cache \
    && install -d -o edgese /data
# Compiled once and kept: engines, bundles of the Hub. Writable for any --user.
ENV PATH=/opt/edgese/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface
VOLUME ["/cache"]
WORKDIR /data
USER 10001
# Opens every runtime and bundle, and compares every file of them with its SHA-256.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["edgese", "doctor"]
ENTRYPOINT ["edgese"]
CMD ["--help"]
