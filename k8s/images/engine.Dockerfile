# The engine: token IDs in, token IDs out, on NVIDIA GPUs. From the root of the repository:
#   docker build -f k8s/images/engine.Dockerfile -t pagestream-engine:1.0.0 .
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/pagestream
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY servicekit servicekit
COPY kernels kernels
COPY engine_service engine_service
# On Linux with an NVIDIA GPU, torch's default wheel brings the CUDA libraries; the host brings the
# driver.
RUN --mount=type=bind,source=constraints.txt,target=constraints.txt \
    /opt/pagestream/bin/pip install --no-cache-dir --constraint constraints.txt '.[engine]'

FROM python:3.12.11-slim-bookworm
# Triton compiles its launchers at run time: it needs a C compiler, the C library's headers and the
# headers of Python, which this base image has under /usr/local/include.
# The tag of the base image fixes the Debian release; Debian's mirrors drop older patch versions, so
# pinning them would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && test -f /usr/local/include/python3.12/Python.h \
    && groupadd --gid 10001 pagestream \
    && useradd --uid 10001 --gid 10001 --create-home pagestream \
    && install --directory --owner=10001 --group=10001 /cache
COPY --from=build /opt/pagestream /opt/pagestream
# /cache and /tmp are the places that the manifests make writable.
ENV PATH=/opt/pagestream/bin:$PATH \
    CC=/usr/bin/gcc \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
EXPOSE 50051 8101
ENTRYPOINT ["python", "-m", "engine_service"]
