# The router: text in, text out; no torch, no GPU. docker-bake.hcl builds it.
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/pagestream
# Dependencies before sources: an edit does not install them again. A package whose hash is not in
# the list is refused.
RUN --mount=type=bind,source=k8s/images/router-requirements.txt,target=requirements.txt \
    /opt/pagestream/bin/pip install --no-cache-dir --no-deps --require-hashes \
    --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY servicekit servicekit
COPY router router
COPY pagestream pagestream
RUN /opt/pagestream/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/pagestream/bin/pip check

FROM python:3.12.11-slim-bookworm
RUN groupadd --gid 10001 pagestream \
    && useradd --uid 10001 --gid 10001 --create-home pagestream
COPY --from=build /opt/pagestream /opt/pagestream
# /tmp is the one place that the manifests make writable. Without options it listens on the loopback
# alone: --host=:: with certificates, or --insecure-host=::, makes it reachable.
ENV PATH=/opt/pagestream/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/huggingface
WORKDIR /tmp
USER 10001:10001
RUN pagestream --version && python -m router --help > /dev/null
EXPOSE 50050 8000 8100
ENTRYPOINT ["python", "-m", "router"]
