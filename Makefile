# Everything from a fresh clone: `make demo`, `make test`, `make lint`, `make bench`.
# Needs Linux, Python 3.11+, a Rust tool chain and a C compiler; the rest is set up here, once.
# Only `test`, `bench` and `lab` may ask Debian for packages (as root, through scripts/setup-debian.sh).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH):$(HOME)/.cargo/bin
export VIRTUAL_ENV := $(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONPATH :=
# Containers often forbid it. Then each of the thousands of processes that the tests start compiles what it imports, and
# in guests, whose root is read-only, under emulation.
export PYTHONDONTWRITEBYTECODE :=

# One process for the lab, one for the rest, until one of them is done: tests/conftest.py. Most tests wait for something.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

RUST := $(shell find crates -type f \( -name '*.rs' -o -name '*.toml' \) -not -path '*/target/*') Cargo.toml $(wildcard Cargo.lock)

# The requirements in pyproject.toml: what a build and a run need, or the extras named.
define REQUIREMENTS
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
extras = project["project"]["optional-dependencies"]
needed = [each for name in sys.argv[1:] for each in extras[name]]
print(*needed or project["build-system"]["requires"] + project["project"]["dependencies"], sep="\n")
endef
export REQUIREMENTS

.PHONY: help build ready debian engine-tests test lint bench demo lab clean

help: ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

build: $(VENV)/.built src/sustain/_track.so ## the package, in .venv

demo: build ## index real files; kill the primary, then let its power fail; compare: about a minute once built
	@sustain demo
	@sustain demo --how outage

ready: build $(VENV)/.dev debian engine-tests ## all that the tests need; `make -j3 ready` waits less
	@if pkg-config --exists libvirt 2>/dev/null; then $(MAKE) --no-print-directory $(VENV)/.libvirt; fi
	@python -m compileall -q src tests bench sim

# After the virtual environment, which may have to ask for a package itself.
debian: $(BIN)/python
	@if [ -x scripts/setup-debian.sh ]; then scripts/setup-debian.sh test; fi

engine-tests:
	@cargo test --quiet --locked -p sustain-core -p sustain-tls --no-run

# The engine's crash states work all the time, without looking at a clock, and pytest's tests mostly wait: the former have
# what the latter leave of the processors. In a group of their own, to end with this.
test: ready ## all tests: engine, package, crash loops, lab
	@echo "the engine's crash states run beside the other tests; what they say comes last"
	@set -m; nice -n 19 cargo test --locked -p sustain-core --test crash --test crash_replica -- crash_states \
	    > target/crash-states.log 2>&1 & states=$$!; set +m; \
	trap 'kill -- -$$states 2>/dev/null || true' EXIT; \
	cargo test --locked -p sustain-core -p sustain-tls -- --skip crash_states; \
	status=0; pytest $(TWO) || status=$$?; \
	wait $$states || status=$$?; \
	trap - EXIT; \
	cat target/crash-states.log; \
	exit $$status

lint: build $(VENV)/.dev ## ruff, mypy, rustfmt, clippy
	ruff check .
	ruff format --check .
	mypy
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings

bench: build $(VENV)/.dev ## every question, ours beside its peers
	@if [ -x scripts/setup-debian.sh ]; then scripts/setup-debian.sh bench; fi
	python -m bench --all

lab: build $(VENV)/.dev ## only the tests that boot real kernels
	@if [ -x scripts/setup-debian.sh ]; then scripts/setup-debian.sh lab; fi
	pytest -m lab

clean: ## everything that was made here
	rm -rf $(VENV) target src/sustain/_native*.so src/sustain/_track.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# python3-venv may be missing (Debian splits it off): then a bare venv, filled by the system's pip if it has one.
$(BIN)/python:
	@if ! $(PYTHON) -m venv $(VENV) >/dev/null 2>&1; then \
	    rm -rf $(VENV); \
	    if $(PYTHON) -m pip --version >/dev/null 2>&1 && $(PYTHON) -m venv --without-pip $(VENV); then \
	        $(PYTHON) -m pip --python $(BIN)/python install -q pip; \
	    elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -q && apt-get install -qy --no-install-recommends python3-venv; \
	        $(PYTHON) -m venv $(VENV); \
	    else \
	        echo "error: $(PYTHON) has neither venv nor pip" >&2; \
	        echo "hint: apt-get install python3-venv" >&2; exit 1; \
	    fi; \
	fi

$(VENV)/.deps: $(BIN)/python constraints.txt pyproject.toml
	@echo "installing what Sustain needs into .venv"
	@$(BIN)/python -c "$$REQUIREMENTS" > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install -q -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.deps | $(VENV)/.built
	@echo "installing what its tests need into .venv"
	@$(BIN)/python -c "$$REQUIREMENTS" dev bench lab > $(VENV)/requirements-dev.txt
	@$(BIN)/python -m pip install -q -c constraints.txt -r $(VENV)/requirements-dev.txt
	@touch $@

# The binding is built with libvirt's headers, which not every machine has; the tests that need it say so.
$(VENV)/.libvirt: $(VENV)/.dev
	@$(BIN)/python -c "$$REQUIREMENTS" libvirt > $(VENV)/requirements-libvirt.txt
	@$(BIN)/python -m pip install -q -c constraints.txt -r $(VENV)/requirements-libvirt.txt
	@touch $@

# The stamp lies in .venv and the module in src/: when either is gone, both are made anew.
$(VENV)/.built: $(VENV)/.deps $(RUST) $(if $(wildcard src/sustain/_native*.so),,native-is-missing)
	@command -v cargo >/dev/null || { echo "error: no Rust tool chain (cargo)" >&2; \
	    echo "hint: install Rust 1.85 or newer" >&2; exit 1; }
	@echo "building the engine: about a minute the first time"
	@$(BIN)/maturin develop --locked --release > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log >&2; exit 1; }
	@touch $@

# What a program is started with whose writes to a region are tracked.
src/sustain/_track.so: preload/track.c
	$(CC) -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -o $@ $<

.PHONY: native-is-missing
native-is-missing:
