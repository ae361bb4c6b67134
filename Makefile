# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

demo: $(STAMP)
	mkdir -p out
	$(BIN)/longlive generate --schedule docs/demo.txt --seconds 30 --seed 1 --out out/demo.mp4 --contact-sheet out/demo.png

test: $(STAMP)
	$(BIN)/pytest -rs $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.generator
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.live
	if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then $(BIN)/python -m benchmarks.gpu; fi

clean:
	rm -rf $(VENV) out
