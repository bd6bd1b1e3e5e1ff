# The router: text in, text out; no torch, no GPU. From the root of the repository:
#   docker build -f k8s/images/router.Dockerfile -t pagestream-router:1.0.0 .
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/pagestream
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY servicekit servicekit
COPY router router
RUN --mount=type=bind,source=constraints.txt,target=constraints.txt \
    /opt/pagestream/bin/pip install --no-cache-dir --constraint constraints.txt '.[router]'

FROM python:3.12.11-slim-bookworm
RUN groupadd --gid 10001 pagestream \
    && useradd --uid 10001 --gid 10001 --create-home pagestream
COPY --from=build /opt/pagestream /opt/pagestream
# /tmp is the one place that the manifests make writable.
ENV PATH=/opt/pagestream/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/huggingface
WORKDIR /tmp
USER 10001:10001
EXPOSE 50050 8000 8100
ENTRYPOINT ["python", "-m", "router"]
