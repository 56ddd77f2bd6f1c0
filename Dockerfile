# Adds openwhisk.py to a model's image: docker build --build-arg MODEL=max-ocr .
ARG REGISTRY=docker.io/codait
ARG MODEL
ARG TAG=latest
FROM ${REGISTRY}/${MODEL}:${TAG}

# User and working directory stay those of the model, an entry point does not: SIGTERM must reach openwhisk.py.
COPY openwhisk.py ./
ENV PORT=8080 PYTHONUNBUFFERED=1
EXPOSE 8080
ENTRYPOINT []
CMD ["python", "openwhisk.py"]

ARG REGISTRY
ARG MODEL
ARG TAG
ARG REVISION=unknown
LABEL org.opencontainers.image.title="${MODEL}" \
      org.opencontainers.image.description="The model ${MODEL} as an Apache OpenWhisk web action" \
      org.opencontainers.image.base.name="${REGISTRY}/${MODEL}:${TAG}" \
      org.opencontainers.image.revision="${REVISION}"
