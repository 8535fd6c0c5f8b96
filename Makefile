.DEFAULT_GOAL := help
.PHONY: help setup demo test check proto bench bench-full bench-peers bench-training torture interleavings prometheus redis clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GENERATED := proto/hiddenstate_proto

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## Make .venv with everything in it (once; again when pyproject.toml or constraints.txt change)
	@echo "$(VENV) is ready"

demo: $(INSTALLED) ## Serve the shipped models, stream real text and a real sensor through them
	@PATH="$(CURDIR)/$(BIN):$$PATH" TEXT="$(TEXT)" VALUES="$(VALUES)" deploy/demo/demo.sh

test: check prometheus redis ## Set up, run the checks and all tests
	@GRPC_VERBOSITY=ERROR $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

check: $(INSTALLED) ## Formatting, lint, types, import contracts, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check . || { echo "Run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,$$fresh) && \
	  diff -r -x __init__.py -x py.typed -x __pycache__ "$$fresh/hiddenstate_proto" $(GENERATED) || \
	  { echo "$(GENERATED) is not what the .proto gives. Run: make proto" >&2; exit 1; }
	@echo "make check: all good"

proto: $(INSTALLED) ## Generate the Python code of the wire contract
	@$(call generate,proto)

bench: $(INSTALLED) ## Measure the server beside an echo server and the bare engine (ARGS="--seconds 10")
	@$(BIN)/python -m bench $(ARGS)

bench-full: $(INSTALLED) ## Run all benchmarks, one after the other: an hour and a half on a quiet machine (ARGS="--skip soak")
	@$(BIN)/python -m bench.full $(ARGS)

bench-peers: $(INSTALLED) ## Measure the server beside others, each installed by its bench/peers/NAME/install.sh (ARGS="--peer triton")
	@$(BIN)/python -m bench.peers $(ARGS)

bench-training: $(INSTALLED) ## Measure training beside a plain loop (ARGS="--data text.txt --words 33278")
	@$(BIN)/python -m bench.training $(ARGS)

torture: $(INSTALLED) ## Kill servers, stores and connections under load for an hour (ARGS="kill-behind --count 50 --seed 7")
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.torture $(ARGS)

interleavings: $(INSTALLED) ## Try thousands of random interleavings of what clients, servers and time can do (N=20: twenty times those of `make test`)
	@INTERLEAVINGS=$(or $(N),20) $(BIN)/python -m pytest -q --timeout 0 tests/server/test_isolation.py tests/server/test_keeper_interleavings.py

prometheus: $(INSTALLED)
	@deploy/get-prometheus.sh $(BIN)

redis: $(INSTALLED)
	@deploy/get-redis.sh $(BIN)

clean: ## Remove .venv, caches and everything built
	rm -rf $(VENV) build dist bench/results bench/peers/.venvs bench/fronts/.venvs runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call generate,FOLDER): the plugins must be on PATH; status.proto comes with googleapis-common-protos.
# The virtual path hiddenstate_proto= makes protoc write imports that work as they are.
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -W ignore -m grpc_tools.protoc -Ihiddenstate_proto=proto/hiddenstate/v1 \
  -I"$$($(BIN)/python -c 'import google.rpc; print(list(google.rpc.__path__)[0].removesuffix("/google/rpc"))')" \
  --python_out=$(1) --mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) \
  hiddenstate_proto/hiddenstate.proto
endef

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv found. Install one (Debian: apt-get install python3-venv)," >&2; \
	echo "or name yours: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
