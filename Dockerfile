# README's two commands, in an image that holds nothing else:
#   docker build -t parspike . && docker run --rm parspike && docker run --rm parspike make test
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make g++ chromium fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /parspike
COPY . .
# torch for CPUs alone: the one of PyPI brings gigabytes of CUDA
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make .venv/.installed
CMD ["make", "demo"]
