# `make help` lists the targets. Needs Linux, Python 3.11 or newer with venv, and make; everything else
# comes from the package index, at the versions of constraints.txt.

# The first Python that is new enough and can make a virtual environment (Debian's own may lack ensurepip).
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
    $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# ONNX Runtime's build: cpu, gpu, or auto, which is gpu where nvidia-smi shows one.
EXTRA ?= auto
# Handed on to the command behind serve, test, train and export: make serve ARGS='--port 9000'
ARGS ?=

VENV := .venv
SERVE_VENV := .venv-serve
READY := $(VENV)/.ready-$(EXTRA)
SERVE_READY := $(SERVE_VENV)/.ready-$(EXTRA)
INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt

define choose_extra
extra='$(EXTRA)'; \
if [ "$$extra" = auto ]; then \
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then extra=gpu; else extra=cpu; fi; \
fi
endef

define need_python
if [ -z "$(PYTHON)" ]; then \
    echo 'No Python 3.11 or newer with the venv module is on the PATH: install one, or say make PYTHON=/path/to/python' >&2; \
    exit 1; \
fi
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-fast test-tools check format docs reference train export env serve-env image image-export \
	test-gpu test-container test-container-gpu audit release pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' Makefile

serve: $(SERVE_READY) ## serve on http://127.0.0.1:8000, in an environment without torch
	@exec $(SERVE_VENV)/bin/python -m server $(ARGS)

test: $(READY) ## run all tests, but for those of the tools
	@$(VENV)/bin/python -m pytest $(ARGS)

test-fast: $(READY) ## run the tests that take seconds
	@$(VENV)/bin/python -m pytest -m 'not slow' $(ARGS)

test-tools: $(READY) ## run the tests of benchmarks and of what .ci holds
	@$(VENV)/bin/python -m pytest tests/tools $(ARGS)

test-container: $(READY) ## build the CPU image, run it hardened and test it (podman is installed where root may)
	@$(VENV)/bin/python -m pytest tests/container --ignore=tests/container/test_gpu_image.py $(ARGS)

test-gpu: $(READY) ## run the tests that need an NVIDIA GPU; they skip without one, ARGS=--rehearse tries them on a CPU
	@$(VENV)/bin/python -m pytest tests/gpu $(ARGS)

test-container-gpu: $(READY) ## build the GPU image and test what is in it; needs no GPU, downloads 1.6 GB
	@$(VENV)/bin/python -m pytest tests/container/test_gpu_image.py $(ARGS)

check: $(READY) ## format, lint, types, import rules, Dockerfiles; changes nothing
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --python-version 3.10 client/src
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint Dockerfile docker/export.Dockerfile

format: $(READY) ## format the code and apply lint fixes
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(READY) ## build the documentation into build/site; opens without a network and a server
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

reference: $(READY) ## write the tables of docs/reference from the code
	@$(VENV)/bin/python docs/_hooks/reference.py

# ultralytics would otherwise install packages by itself when it misses one.
train export: export YOLO_AUTOINSTALL = false
train: $(READY) ## make train ARGS='--arch yolov8n-fla --data DATA.yaml'
	@$(VENV)/bin/python -m model train $(ARGS)

export: $(READY) ## make export ARGS='model.pt -o model.onnx'
	@$(VENV)/bin/python -m export $(ARGS)

env: $(READY) ## make the environment for work, .venv

serve-env: $(SERVE_READY) ## make the environment for serving, .venv-serve

# Looks for no GPU: where an image is built tells little about where it will run.
image: ## build the image yolov8-fla for GPUs, or with EXTRA=cpu yolov8-fla:cpu, and print how to run it
	@.ci/container_tools.sh build --build-arg EXTRA=$(if $(filter cpu,$(EXTRA)),cpu,gpu) \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" -t yolov8-fla$(if $(filter cpu,$(EXTRA)),:cpu) .
	@tool=$$(.ci/container_tools.sh tool) || exit; gpus=; \
	case '$(EXTRA)' in \
	    cpu) image=yolov8-fla:cpu ;; \
	    *) image=yolov8-fla; case $$tool in docker) gpus='--gpus all ' ;; *) gpus='--device nvidia.com/gpu=all ' ;; esac ;; \
	esac; \
	echo "run it: $$tool run --rm $$gpus-p 127.0.0.1:8000:8000 $$image" >&2

image-export: ## build the image yolov8-fla-export (torch, 6.6 GB), and print how to run it
	@.ci/container_tools.sh build -f docker/export.Dockerfile \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" -t yolov8-fla-export .
	@tool=$$(.ci/container_tools.sh tool) || exit; \
	echo "run it: $$tool run --rm --user \"\$$(id -u):\$$(id -g)\" -v \"\$$PWD:/work\" yolov8-fla-export best.pt -o best.onnx" >&2

# --strict: what could not be looked up is no success either. An advisory that does not concern us: --ignore-vuln ID,
# with the reason here. Known vulnerabilities are told on stdout, all else on stderr.
AUDIT = $(VENV)/bin/python -m pip_audit --strict -r constraints.txt --no-deps --disable-pip --progress-spinner off

audit: $(READY) ## look every pin up among known vulnerabilities
	@$(AUDIT) $(ARGS)

release: $(READY) ## make dist/ and the images of this commit, publish nothing; ARGS=--images for no images
	@audited='the pins have no known vulnerability'; \
	found=$$($(AUDIT)) || audited='THE PINS WERE NOT AUDITED: `make audit` says why'; \
	if [ -n "$$found" ]; then printf 'no release: pins have known vulnerabilities\n%s\n' "$$found" >&2; exit 1; fi; \
	$(VENV)/bin/python .ci/release.py $(ARGS) && echo "$$audited"

# onnxruntime and onnxruntime-gpu can't be installed together; one plan of pip's still holds the pins of both.
pins: $(READY) ## write constraints.txt again, with the newest versions
	@mkdir -p build
	@$(VENV)/bin/python -m pip install --quiet --dry-run --ignore-installed --use-feature=fast-deps --report build/pins.json \
	    pip '.[cpu,gpu,export,otel,ray]' ./client --group dev --group docs --group release
	@grep '^#' constraints.txt >build/constraints.txt
	@$(VENV)/bin/python -c 'import json, packaging.utils as u; found = json.load(open("build/pins.json"))["install"]; \
	    pins = {u.canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}; \
	    [pins.pop(name) for name in ("yolov8-fla", "yolov8-fla-client")]; print("\n".join(map("==".join, sorted(pins.items()))))' >>build/constraints.txt
	@mv build/constraints.txt constraints.txt

clean: ## remove both environments, dist/, what tools left, and build/ with the images that make image keeps there
	rm -rf $(VENV) $(SERVE_VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find server client model export benchmarks docs samples tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Small, so made anew whenever a requirement changes; nothing left over can hide a missing one.
$(SERVE_READY): pyproject.toml client/pyproject.toml constraints.txt
	@$(need_python); $(choose_extra); \
	echo "Making $(SERVE_VENV) (extra $$extra): once, about a minute"; \
	set -e; \
	$(PYTHON) -m venv --clear $(SERVE_VENV); \
	$(SERVE_VENV)/bin/python $(INSTALL) -e ".[$$extra]" -e ./client; \
	touch $@

# Large (torch), so brought up to date in place.
# - pip is renewed first: the one that comes with Python 3.11 does not know --group.
# - onnxruntime and onnxruntime-gpu share their files: none may be there when the other is put in.
# - So do opencv-python, which ultralytics asks for, and opencv-python-headless. Put in last, headless wins;
#   the other needs libGL, which a fresh machine lacks.
$(READY): pyproject.toml client/pyproject.toml constraints.txt
	@$(need_python); $(choose_extra); \
	echo "Making $(VENV) (extra $$extra): once, several minutes and 7.1 GB"; \
	set -e; \
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV); \
	rm -f $(VENV)/.ready-*; \
	$(VENV)/bin/python $(INSTALL) --upgrade pip; \
	$(VENV)/bin/python -m pip uninstall -qq --yes onnxruntime onnxruntime-gpu; \
	$(VENV)/bin/python $(INSTALL) -e ".[$$extra,export,otel,ray]" -e ./client --group dev --group docs --group release; \
	$(VENV)/bin/python $(INSTALL) --force-reinstall --no-deps opencv-python-headless; \
	touch $@
