# Adds openwhisk.py to a model's image: docker build --build-arg MODEL=max-ocr .
ARG REGISTRY=quay.io/codait
ARG MODEL
ARG TAG=latest
FROM ${REGISTRY}/${MODEL}:${TAG}

# User and working directory stay those of the model, entry point and stop signal do not: SIGTERM must reach openwhisk.py.
COPY openwhisk.py ./
ARG WSGI_APP
ARG PREDICT_PATH
ARG RESULT_LIMIT
ENV PORT=8080 PYTHONUNBUFFERED=1 WSGI_APP=${WSGI_APP} PREDICT_PATH=${PREDICT_PATH} RESULT_LIMIT=${RESULT_LIMIT}
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["python", "openwhisk.py"]

ARG REGISTRY
ARG MODEL
ARG TAG
ARG VERSION=latest
ARG REVISION=unknown
LABEL org.opencontainers.image.title="${MODEL}" \
      org.opencontainers.image.description="The model ${MODEL} as an Apache OpenWhisk web action" \
      org.opencontainers.image.base.name="${REGISTRY}/${MODEL}:${TAG}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
