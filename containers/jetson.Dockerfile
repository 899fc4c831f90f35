# edgese for a Jetson: TensorRT from the base image, engines built on the first start into a volume.
#
#   JetPack 6.1 and 6.2 (Orin):   docker build -f containers/jetson.Dockerfile -t edgese-jetson .
#   JetPack 7 (Thor):             docker build -f containers/jetson.Dockerfile -t edgese-jetson \
#                                     --build-arg BASE=nvcr.io/nvidia/tensorrt:25.11-py3 .
#   docker run --rm --runtime nvidia -v edgese-cache:/cache -v "$PWD:/data" edgese-jetson enhance noisy.wav
#
# Build on the board: JetPack 6's TensorRT is 10.3 (L4T R36.4), and an engine fits only the TensorRT and GPU that built it.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY calib calib/
COPY export export/
COPY runtimes runtimes/
COPY edgese edgese/
# The environment sees the base image's tensorrt, which no package index has for a Jetson.
RUN python3 -m venv --system-site-packages /opt/edgese \
    && /opt/edgese/bin/python -m pip install --no-cache-dir . \
    && /opt/edgese/bin/python -c "import tensorrt" \
    && useradd --uid 10001 --no-create-home --groups video edgese \
    && install -d -o edgese -m 1777 /cache \
    && install -d -o edgese /data
COPY --chmod=755 containers/jetson-start /usr/local/bin/jetson-start
ENV PATH=/opt/edgese/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache
VOLUME ["/cache"]
WORKDIR /data
USER 10001
HEALTHCHECK --interval=5m --timeout=120s --start-period=15m CMD ["edgese", "doctor"]
ENTRYPOINT ["jetson-start"]
CMD ["--help"]
