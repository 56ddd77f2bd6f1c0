# Adds openwhisk.py to a model's image: docker build --build-arg MODEL=max-ocr .
ARG REGISTRY=quay.io/codait
ARG MODEL
ARG TAG=latest
FROM ${REGISTRY}/${MODEL}:${TAG}

# User and working directory stay the model's. Entry point and stop signal do not: SIGTERM must reach openwhisk.py.
COPY openwhisk.py /openwhisk/
ARG WSGI_APP
ARG PREDICT_PATH
ARG RESULT_LIMIT
ENV PYTHONUNBUFFERED=1 OPENWHISK_APP=${WSGI_APP} OPENWHISK_PREDICT_PATH=${PREDICT_PATH} \
    OPENWHISK_RESULT_LIMIT=${RESULT_LIMIT}
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["python", "/openwhisk/openwhisk.py"]

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
