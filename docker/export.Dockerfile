# A trained checkpoint becomes a verified ONNX artifact, without Python or torch on the host:
#
#   docker build -t yolov8-fla-export -f docker/export.Dockerfile .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" yolov8-fla-export best.pt -o best.onnx
#
# The package index's torch is built for CUDA, which makes this image large; it works on the CPU all the same. Another
# index may have a build for CPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM debian:bookworm-slim AS python
# DL3008: Debian's archive drops a version as soon as its security update is out, so a pin would only break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log


FROM python AS pip
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.11 -m venv /opt/pip


# Only what the export needs, as a list: a change of anything else in pyproject.toml downloads nothing again.
FROM pip AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN ["/opt/pip/bin/python", "-c", "\
import pathlib, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb')); \
extras = project['project']['optional-dependencies']; \
exporting = project['project']['dependencies'] + extras['cpu'] + extras['export']; \
pathlib.Path('exporting.txt').write_text('\\n'.join(sorted(exporting)) + '\\n'); \
pathlib.Path('building.txt').write_text('\\n'.join(project['build-system']['requires']) + '\\n')"]


FROM pip AS package
ARG REVISION=""
WORKDIR /build
COPY constraints.txt ./
COPY --from=requirements /build/building.txt ./
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/build-ca.crt \
    /opt/pip/bin/pip install --no-cache-dir -c constraints.txt -r building.txt
COPY hatch_build.py pyproject.toml README.md LICENSE ./
COPY export export
COPY model model
COPY server server
RUN /opt/pip/bin/python -m hatchling build --target wheel --directory /build/dist \
    && /opt/pip/bin/pip install --no-deps --no-index --target /opt/package dist/*.whl


FROM python
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all:
# pip is only borrowed, and what it installs lies in this one layer: it has gigabytes, which a COPY would hold twice.
# - ultralytics asks for opencv-python; the headless build shares its files, and needs no libraries of a desktop.
RUN --mount=type=bind,from=pip,source=/opt/pip,target=/opt/pip \
    --mount=type=bind,from=requirements,source=/build,target=/requirements \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/run/build-ca.crt \
    python3.11 -m venv --without-pip /opt/venv \
    && mkdir /tmp/torch \
    && if [ -n "$TORCH_INDEX" ]; then \
        /opt/pip/bin/pip download --no-deps -i "$TORCH_INDEX" -c /constraints.txt -d /tmp/torch torch torchvision; \
    fi \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install \
        --find-links /tmp/torch -c /constraints.txt -r /requirements/exporting.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install \
        --force-reinstall --no-deps -c /constraints.txt opencv-python-headless \
    && rm -rf /tmp/torch
COPY --from=package /opt/package /opt/venv/lib/python3.11/site-packages
# Whoever --user names has no name and no home in here.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=exporter \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    YOLO_AUTOINSTALL=false \
    YOLO_CONFIG_DIR=/tmp/ultralytics \
    YOLO_OFFLINE=true
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["/opt/venv/bin/python", "-m", "export"]
ARG REVISION=""
ARG VERSION=""
LABEL org.opencontainers.image.title="yolov8-fla-export" \
      org.opencontainers.image.description="Makes verified ONNX artifacts of YOLOv8 checkpoints with focused linear attention" \
      org.opencontainers.image.licenses="AGPL-3.0-only" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
