# The server's image.
#
#   docker build -t yolov8-fla .                          CUDA 13, also serves on a CPU
#   docker build -t yolov8-fla:cpu --build-arg EXTRA=cpu .
#
# Nothing of torch, ultralytics, compilers or pip is in it. It needs no root, no capability and no writable file system.
# Versions are those of constraints.txt; Debian's packages are Bookworm's, with its security updates of the day.
ARG EXTRA=gpu

FROM debian:bookworm-slim AS python
# DL3008: Debian's archive drops a version as soon as its security update is out, so a pin would only break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old \
        /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
        /usr/lib/python3.11/idlelib /usr/lib/python3.11/lib2to3 /usr/lib/python3.11/pydoc_data /usr/lib/python3.11/test


FROM python AS pip
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all:
RUN python3.11 -m venv /opt/pip


# Only what the server needs, as a list: a change of anything else in pyproject.toml downloads nothing again.
FROM pip AS requirements
ARG EXTRA
WORKDIR /build
COPY pyproject.toml ./
RUN ["/opt/pip/bin/python", "-c", "\
import os, pathlib, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb')); \
extras = project['project']['optional-dependencies']; \
serving = project['project']['dependencies'] + extras[os.environ['EXTRA']] + extras['otel']; \
pathlib.Path('serving.txt').write_text('\\n'.join(sorted(serving)) + '\\n'); \
pathlib.Path('building.txt').write_text('\\n'.join(project['build-system']['requires']) + '\\n')"]


FROM pip AS dependencies
COPY constraints.txt /build/
COPY --from=requirements /build/serving.txt /build/
# The secrets are optional: pip's configuration for a mirror, and the certificate authorities that it names.
# Then goes what serving never reads. Of CUDA's libraries:
# - libcufft (and libnvJitLink, which it alone loads) is only for the operators Rfft and Irfft, which no detector has; ONNX
#   Runtime looks for it when it meets one (onnxruntime#29808).
# - libnvblas and libcufftw are for programs written for other libraries' interfaces, static libraries and headers for compilers.
# - cuDNN stays whole: it loads its parts by itself as convolutions need them, and NVIDIA supports no part of it
#   without the others but one that has no precompiled kernels.
# - libonnxruntime_providers_tensorrt.so stays, so that device=tensorrt can tell what it misses, and works where it is added.
# libonnxruntime.so.* is for other programs; Python's ONNX Runtime has its own inside (onnxruntime#21223).
# What the packages tell of themselves (*.dist-info) stays: scanners and licences need it.
# One RUN, as a layer between would hold gigabytes twice.
WORKDIR /opt/venv/lib/python3.11/site-packages
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/build-ca.crt \
    python3.11 -m venv --without-pip /opt/venv \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --no-compile -c /build/constraints.txt -r /build/serving.txt \
    && rm -rf nvidia/*/include nvidia/*/nvvm nvidia/*/bin nvidia/*/lib/cmake nvidia/*/lib/pkgconfig \
        nvidia/cu13/lib/libcufft.so.* nvidia/cu13/lib/libcufftw.so.* nvidia/cu13/lib/libnvJitLink.so.* \
        nvidia/cu13/lib/libnvblas.so.* \
        numpy/_core/include numpy/_core/lib numpy/f2py numpy/random/lib \
        onnxruntime/capi/libonnxruntime.so.* \
        onnxruntime/backend onnxruntime/datasets onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
        cv2/data cv2/gapi cv2/typing ../../../include \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . \( -name '*.a' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.pyx' \) -delete \
    && mkdir -p nvidia \
    && mv nvidia /opt/nvidia \
    && /opt/venv/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash .


# The server itself, with version and commit.
FROM pip AS package
ARG REVISION=""
WORKDIR /build
COPY constraints.txt ./
COPY --from=requirements /build/building.txt ./
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/build-ca.crt \
    /opt/pip/bin/pip install -c constraints.txt -r building.txt
COPY hatch_build.py pyproject.toml README.md LICENSE ./
COPY export export
COPY model model
COPY server server
# Of the three packages only the server, and not their common command: the others need torch.
RUN /opt/pip/bin/python -m hatchling build --target wheel --directory /build/dist \
    && /opt/pip/bin/pip install --no-compile --no-deps --no-index --target /opt/package dist/*.whl \
    && rm -rf /opt/package/bin /opt/package/export /opt/package/model \
    && python3.11 -m compileall -q -f --invalidation-mode unchecked-hash /opt/package


FROM python AS server
# Nobody in here needs to become somebody else.
RUN groupadd --gid 10001 detector \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin detector \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# CUDA is a layer of its own, which an update of the other packages leaves as it is.
COPY --from=dependencies /opt/nvidia /opt/venv/lib/python3.11/site-packages/nvidia
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE ./
COPY weights weights
# What the page offers as a first try. (In a checkout, weights/samples is a link, which no build sees.)
COPY samples/*.jpg weights/samples/
# Last, as it changes most.
COPY --from=package /opt/package /opt/venv/lib/python3.11/site-packages
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    YOLO_FLA_HOST=0.0.0.0 \
    YOLO_FLA_MODEL=/app/weights
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/venv/bin/python", "-m", "server"]
# Ready means healthy: a server that loads its model, drains or hangs takes no requests. A GPU takes its time to warm up.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/venv/bin/python", "-m", "server.healthcheck"]


FROM server AS cpu


FROM server AS gpu
# For the NVIDIA Container Toolkit: what `--gpus all` shows, and that nvidia-smi and NVML come along.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility


# DL3006: it is one of the two above.
# hadolint ignore=DL3006
FROM ${EXTRA} AS final
# Debian's podman overlooks a stage that only an argument's default names, so the default is named here once more.
COPY --from=gpu /app/LICENSE /app/
ARG EXTRA
ARG REVISION=""
ARG VERSION=""
LABEL org.opencontainers.image.title="yolov8-fla" \
      org.opencontainers.image.description="HTTP inference server for YOLOv8 detectors with focused linear attention (${EXTRA})" \
      org.opencontainers.image.licenses="AGPL-3.0-only" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
