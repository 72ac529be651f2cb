# `make run` starts a coordinator on this machine, `make test` and `make test-browser` test it; each does all of the
# set-up that it needs.
# Arguments go through ARGS: make run ARGS="--port 8001", make test ARGS="tests/unit -k spool".

PYTHON ?= python3
ARGS ?=
# If the checkout is read-only, its environment must be elsewhere: make VENV=~/ecm-venv test
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := embedded,agent,plot,test,docs
# This file marks a complete installation. It holds the checkout's path: an environment does not survive a move.
INSTALLED := $(VENV)/installed-for
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

.PHONY: install run test test-browser demo bench docs screenshots lint lint-rules lint-format lint-types lint-imports constraints
.DEFAULT_GOAL := install

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or later is needed as "$(PYTHON)"; choose another with: make PYTHON=/path/to/python3' >&2; exit 1; }
	@if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; then \
		echo 'making the environment in $(VENV) ...'; \
		$(PYTHON) -m venv --clear $(VENV) \
			|| { rm -rf $(VENV); echo '"$(PYTHON)" cannot make environments; on Debian: apt-get install python3-venv' >&2; exit 1; }; \
	fi
	@echo 'installing what constraints.txt lists (a minute or two the first time) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@echo '$(CURDIR)' > $@

run: install
	@exec $(BIN)/ecm-coordinator up $(ARGS)

demo: install
	@exec $(BIN)/ecm-coordinator demo $(ARGS)

bench: install
	@exec $(BIN)/python -m bench $(ARGS)

# The tests of one file share servers, so one process runs the whole file. The directories run in the order of
# `testpaths` in setup.cfg: the slow files begin first, and the many quick ones fill the gaps. Many tests wait without
# using a core, so there is a process more than cores.
TEST_PROCESSES := $(shell cores=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	echo $$((cores < 4 ? cores + 1 : 4)))
test: install
	@exec $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

# The tests in a browser: chromium itself needs a core.
test-browser: install
	@exec $(BIN)/python -m pytest -n logical --maxprocesses 2 --dist loadfile $(or $(ARGS),tests/browser)

# The guide: HTML that the web process serves at /docs/guide/. A wheel that is built after this contains it.
docs: install
	@exec $(BIN)/python -m docs $(ARGS)

# The pictures in docs/screenshots; needs a browser, as the tests in tests/browser do.
screenshots: install
	@exec $(BIN)/python -m pytest -q tests/browser/screenshots.py

# Separate targets, so that `make -k lint` reports all errors at once.
lint: lint-rules lint-format lint-types lint-imports
lint-rules: install
	$(BIN)/ruff check .
lint-format: install
	$(BIN)/ruff format --check .
lint-types: install
	$(BIN)/mypy
lint-imports: install
	$(BIN)/lint-imports --config setup.cfg --no-cache --no-logo

# The newest versions that setup.cfg allows; run the tests before you commit them.
constraints:
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT \
		&& $(PYTHON) -m venv "$$new/venv" \
		&& "$$new/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' \
		&& { sed '/^#/!d' constraints.txt; "$$new/venv/bin/python" -m pip freeze --all --exclude-editable | grep -v "^pip=="; } > "$$new/constraints.txt" \
		&& cp "$$new/constraints.txt" constraints.txt
