# Each target sets up what it needs. What they write goes to ignored folders: a run leaves `git status` clean.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export MPLBACKEND ?= agg
METADATA := settings.ini setup.py pyproject.toml constraints.txt

.PHONY: setup demo test notebooks floors fuzz outputs docs bench lab hooks lock dist
.DELETE_ON_ERROR:

setup: $(VENV)/.dev

$(VENV)/.dev $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: $(METADATA)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "loragrass needs Python 3.11 or newer; name one: make $@ PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "this Python cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing loragrass[$*] into $(VENV) (a minute or two the first time)"
	@$(BIN)/pip install -q --disable-pip-version-check uv \
	  && UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[$*]' \
	  || $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: setup
	@$(BIN)/loragrass demo -o _demo

test: setup
	@.ci/test

notebooks: setup
	LORAGRASS_NOTEBOOKS=all pytest tests/test_notebooks.py

# the oldest versions that settings.ini allows, in an environment that is thrown away (2.5 GB where torch brings CUDA; UV_TORCH_BACKEND=cpu where it need not)
floors: setup
	@env=$$(mktemp -d) && trap 'rm -rf "$$env"' EXIT && uv venv -q --clear --python $(BIN)/python "$$env" \
	  && uv pip install -q --python "$$env" --resolution lowest-direct -e '.[hub]' && uv pip install -q --python "$$env" pytest hypothesis mpmath \
	  && "$$env/bin/python" -m pytest -p no:cacheprovider $(FLOORS:%=tests/test_%.py)
FLOORS := plucker grassmann_manifold clustering merging cluster_merge selection subspace_index features directions module_names formats writers report cli

fuzz: setup
	LORAGRASS_FUZZ=$${LORAGRASS_FUZZ:-5000} pytest -s tests/test_fuzz_io.py

outputs: setup
	pytest nbs --save && nbdev-export && nbdev-clean && python docs/readme.py

docs: $(VENV)/.docs
	@$(BIN)/python docs/build.py && $(BIN)/python docs/check.py

$(VENV)/.docs $(VENV)/.bench: | $(VENV)/.dev

bench: $(VENV)/.bench
	@mkdir -p _bench && for b in $(filter-out bench/common.py bench/group_families.py bench/smollm.py,$(wildcard bench/*.py)); do echo "$$b" && $(BIN)/python "$$b" > "_bench/$$(basename "$$b" .py).md" || exit 1; done
	@{ printf '# Results\n\nWhat `make bench` printed last. Read the ratios: seconds are of one machine on one day.\n'; \
	  for f in _bench/*.md; do printf '\n## `bench/%s.py`\n\n' "$$(basename "$$f" .md)"; cat "$$f"; done; } > bench/RESULTS.md

lab: setup
	$(BIN)/jupyter lab nbs

hooks: setup
	$(BIN)/nbdev-install-hooks --diff False

lock: setup
	UV_FIND_LINKS= $(BIN)/uv pip compile -q --universal --python-version 3.11 --extra dev --extra docs --extra bench -c constraints.in -o constraints.txt pyproject.toml

dist: setup
	@test -z "$$TAG" || test "$$TAG" = "v$$(sed -n 's/^version = //p' settings.ini)" || { echo "the tag $$TAG is not the version in settings.ini"; exit 1; }
	rm -rf dist && UV_FIND_LINKS="$$PIP_FIND_LINKS" uv build -q -o dist && uvx -q twine check --strict dist/*
