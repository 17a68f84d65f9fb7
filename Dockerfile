# VoxSAM's server with page and model: docker build -t voxsam . && docker run -p 8000:8000 -e VOXSAM_KEY=secret voxsam
# On a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t voxsam:cuda . and docker run --gpus all ...
ARG PYTHON=3.12

FROM node:22-slim AS page
WORKDIR /build/viewer
COPY viewer/package.json viewer/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY viewer/ ./
RUN npm run build

FROM python:${PYTHON}-slim AS wheel
WORKDIR /build
COPY . .
COPY --from=page /build/src/voxsam/server/static src/voxsam/server/static
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
# torch first and from its own index: the default wheel of PyPI brings CUDA along. Versions are those of constraints.txt.
# hadolint ignore=DL3013
RUN TORCH="$(sed -n 's/^torch==/torch==/p' /tmp/constraints.txt)" \
    && pip install --no-cache-dir --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple "${TORCH}" \
    && grep -v '^torch==' /tmp/constraints.txt > /tmp/rest.txt \
    && WHEEL="$(ls /tmp/wheels/voxsam-*.whl)" \
    && pip install --no-cache-dir -c /tmp/rest.txt "${WHEEL}[serve,dicom,speed]" \
    && rm -r /tmp/wheels /tmp/constraints.txt /tmp/rest.txt \
    && useradd --create-home --uid 10001 voxsam \
    && install -d -o voxsam /state /scans
USER 10001
WORKDIR /home/voxsam
ENV MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
VOLUME ["/state", "/scans"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["voxsam"]
CMD ["serve", "/scans", "--host", "0.0.0.0", "--state", "/state"]
