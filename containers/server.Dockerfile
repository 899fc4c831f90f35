# edgese for servers: live streams over WebSocket, or any other command. No PyTorch, no compiler, no root.
#
#   docker build -f containers/server.Dockerfile -t edgese .
#   docker run --rm -p 8765:8765 -e EDGESE_TOKEN edgese
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" edgese enhance noisy.wav

# The Python that constraints-3.11.txt was tested with.
FROM python:3.11-slim-bookworm AS build
# More of them, as "[serve,triton,hub,ray]"; those with PyTorch do not belong here.
ARG EXTRAS="[serve]"
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
EXPOSE 8765
# Of `serve` without TLS; for other commands: --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/health', timeout=4)"]
ENTRYPOINT ["edgese"]
CMD ["serve", "--host", "0.0.0.0"]
