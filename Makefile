# Two commands do everything on a fresh machine: `make demo` and `make test`. `make oldest` tests the oldest
# versions of everything that pyproject.toml allows, in an environment of its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLD := .venv-oldest
SERVED := tests/host tests/browser

.PHONY: demo test oldest archive lint bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

# Threads that spin while they wait make Mini very slow on a CPU that has other work, or fewer cores than it shows.
demo: $(STAMP)
	mkdir -p out
	OMP_WAIT_POLICY=PASSIVE $(BIN)/longlive generate --schedule docs/demo.txt --seconds 30 --seed 1 --out out/demo.mp4 --contact-sheet out/demo.png

# The core in two processes of one thread each, then two servers at a time.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -rs -n 2 --dist worksteal $(or $(TESTS),tests $(SERVED:%=--ignore=%))
	$(if $(TESTS),,$(BIN)/pytest -rs -n 2 --dist loadgroup $(SERVED))

oldest:
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/pip install --quiet --requirement tests/oldest.txt
	$(OLD)/bin/pip install --quiet --no-deps --editable .
	$(OLD)/bin/pip check
	OMP_NUM_THREADS=1 $(OLD)/bin/pytest -rs -n 2 --dist worksteal $(or $(TESTS),tests $(SERVED:%=--ignore=%))

# What the Comfy registry takes: see docs/publishing.md.
archive:
	mkdir -p out
	$(PYTHON) docs/archive.py out/longlive.zip

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.generator
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.journal
	if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then $(BIN)/python -m benchmarks.gpu; fi

clean:
	rm -rf $(VENV) $(OLD) out
