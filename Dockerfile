# Adds openwhisk.py to a model's image: docker build --build-arg MODEL=max-ocr .
ARG REGISTRY=quay.io/codait
ARG MODEL
ARG TAG=latest
FROM ${REGISTRY}/${MODEL}:${TAG}

# User and working directory stay the model's. Entry point and stop signal do not: SIGTERM must reach openwhisk.py.
COPY openwhisk.py /openwhisk/
# No other names: a variable of the model's image would win over an argument of the same name.
ARG OPENWHISK_APP
ARG OPENWHISK_PREDICT_PATH
ARG OPENWHISK_RESULT_LIMIT
ENV PYTHONUNBUFFERED=1 OPENWHISK_APP=${OPENWHISK_APP} OPENWHISK_PREDICT_PATH=${OPENWHISK_PREDICT_PATH} \
    OPENWHISK_RESULT_LIMIT=${OPENWHISK_RESULT_LIMIT}
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["python", "/openwhisk/openwhisk.py"]
