# The engine: token IDs in, token IDs out, on NVIDIA GPUs. docker-bake.hcl builds it.
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/pagestream
# Dependencies before sources: an edit does not install torch again. A package whose hash is not in
# the list is refused. On Linux, torch's default wheel brings the CUDA libraries; the host brings the
# driver.
RUN --mount=type=bind,source=k8s/images/engine-requirements.txt,target=requirements.txt \
    /opt/pagestream/bin/pip install --no-cache-dir --no-deps --require-hashes \
    --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY servicekit servicekit
COPY kernels kernels
COPY engine_service engine_service
COPY pagestream pagestream
RUN /opt/pagestream/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/pagestream/bin/pip check

FROM python:3.12.11-slim-bookworm AS engine
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
# /cache and /tmp are the places that the manifests make writable. Without options it listens on the
# loopback alone: --host=:: with certificates, or --insecure-host=::, makes it reachable.
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
RUN pagestream --version && python -m engine_service --help > /dev/null
EXPOSE 50051 8101
ENTRYPOINT ["python", "-m", "engine_service"]

# With a model of 11 MB, for a cluster on a laptop: k8s/overlays/laptop.
FROM engine AS engine-demo
COPY demo_model/checkpoint /models/demo

# Without --target, the engine alone is built.
FROM engine
