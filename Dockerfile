# An image that makes images: the runtime and OpenVINO, without torch. Bundles are mounted, not built in.
#
#   docker build -t latentrt .
#   docker run --rm -v "$PWD/bundles:/bundles:ro" -v "$PWD/out:/out" latentrt generate /bundles/shapes "a red circle"

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY export export
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY constraints.txt /tmp/
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /tmp/wheels/latentrt-*.whl)[openvino]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && python -c "import importlib.util as u; assert u.find_spec('torch') is None, 'torch is no part of this image'" \
    && latentrt --version \
    && useradd --create-home latentrt \
    && install --directory --owner latentrt /out
USER latentrt
WORKDIR /out
ENTRYPOINT ["latentrt"]
CMD ["--help"]
