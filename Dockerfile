# Three images from one wheel: `build` exports checkpoints and builds TensorRT engines, `serve` serves bundles, the last one makes images;
# both of these have no torch.
# Bundles are mounted, not built in. PIP_ARGS may name an index of torch's CPU builds for the first.
#
#   docker build -t latentrt-build --target build --build-arg PIP_ARGS="--extra-index-url URL" .
#   docker run --rm -v "$PWD/bundles:/bundles" latentrt-build build /bundles/sd15-fp16 --backend tensorrt-rtx
#
#   docker build -t latentrt .
#   docker run --rm --gpus all -v "$PWD/bundles:/bundles:ro" -v "$PWD/out:/out" latentrt generate /bundles/sd15-fp16 "a red circle"
#
#   docker build -t latentrt-serve --target serve .
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -v "$PWD/bundles:/bundles:ro" -v "$PWD/keys:/keys:ro" latentrt-serve \
#       sd15=/bundles/sd15-fp16 --api-key-file /keys
#
# Without --gpus, and with bundles that have no engines, the last one runs on the CPU with OpenVINO.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY export export
COPY calibration calibration
COPY serving serving
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS build
ARG PIP_ARGS=""
COPY constraints /tmp/constraints
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/constraints/runtime.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints/development.txt ${PIP_ARGS} \
      "$(echo /tmp/wheels/latentrt-*.whl)[export,onnxruntime,tensorrt-rtx]" \
    && rm -r /tmp/wheels /tmp/constraints \
    && latentrt build --help > /dev/null \
    && latentrt export --help > /dev/null
WORKDIR /bundles
ENTRYPOINT ["latentrt"]
CMD ["--help"]

FROM python:3.11-slim AS runtime
# What the driver's container toolkit is to bring in.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY constraints/runtime.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
# pip takes hashes for an extra's packages from constraints since 26.1, and wants one of our own wheel, too.
RUN pip install --no-cache-dir "pip>=26.1" \
    && wheel="$(echo /tmp/wheels/latentrt-*.whl)" \
    && pip install --no-cache-dir --constraint /tmp/runtime.txt \
      "latentrt[tensorrt-rtx,openvino] @ file://${wheel}#sha256=$(sha256sum "${wheel}" | cut -d ' ' -f 1)" \
    && rm -r /tmp/wheels /tmp/runtime.txt \
    && python -c "import importlib.util as u; found = [n for n in ('torch', 'diffusers', 'transformers', 'onnx') if u.find_spec(n)]; assert not found, f'{found} are no part of this image'" \
    && python -c "import tensorrt_rtx; from cuda.bindings import runtime" \
    && latentrt --version \
    && useradd --create-home latentrt \
    && install --directory --owner latentrt /out
USER latentrt
WORKDIR /out
ENTRYPOINT ["latentrt"]
CMD ["--help"]

FROM runtime AS serve
USER root
COPY constraints/runtime.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
RUN wheel="$(echo /tmp/wheels/latentrt-*.whl)" \
    && pip install --no-cache-dir --constraint /tmp/runtime.txt \
      "latentrt[serve] @ file://${wheel}#sha256=$(sha256sum "${wheel}" | cut -d ' ' -f 1)" \
    && rm -r /tmp/wheels /tmp/runtime.txt \
    && python -c "from latentrt.serving.web import app, page; page.routes()" \
    && latentrt serve --help > /dev/null
USER latentrt
EXPOSE 7860
# A container's own address is reached from outside it only where the port is published: a key file stands before that.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["latentrt", "serve", "--host", "0.0.0.0", "--port", "7860"]
CMD ["--help"]

# What is built where no --target is named.
FROM runtime
