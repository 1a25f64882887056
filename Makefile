# Everything runs in .venv, which the first target creates; a second call is quick.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean ablation quality soak scale

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

demo: .venv/ready
	$(BIN)/python demo/run.py

test: .venv/ready
	$(BIN)/pytest -q -n 2 --dist loadgroup

# make soak OPTIONS='--faults 200 --units 1000': the slow tests, then runs that are broken on purpose
soak: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[soak]'
	$(BIN)/pytest -q -m soak
	$(BIN)/python benchmarks/soak.py $(OPTIONS)

# Planning and resuming at 10^5, 10^6 and 10^7 inputs: half an hour
scale: .venv/ready
	$(BIN)/python benchmarks/scale.py $(OPTIONS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment of its own, since Daft does not take our pyarrow
.venv-bench/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	grep -v '^pyarrow==' constraints.txt > .venv-bench/constraints.txt
	.venv-bench/bin/pip install --quiet --upgrade pip
	.venv-bench/bin/pip install --quiet --constraint .venv-bench/constraints.txt torch
	.venv-bench/bin/pip install --quiet --constraint .venv-bench/constraints.txt --editable '.[bench]'
	touch .venv-bench/ready

# Beside what people would use, the forward pass, a stand-in's busy share: half an hour on an idle machine
bench: .venv-bench/ready
	.venv-bench/bin/python -m benchmarks.throughput $(OPTIONS)
	.venv-bench/bin/python -m benchmarks.busy
	.venv-bench/bin/python -m benchmarks.forward

# make ablation SAMPLES=train.parquet [OPTIONS='--steps 800']
ablation: .venv/ready
	$(if $(SAMPLES),,$(error name a samples table: make ablation SAMPLES=train.parquet))
	$(BIN)/python benchmarks/ablation.py --samples $(SAMPLES) --output docs/ablation $(OPTIONS)

# make quality OPTIONS='--weights my-net.safetensors': ours beside other models, into docs/quality.md
quality: .venv/ready
	$(BIN)/python benchmarks/quality.py --write docs/quality.md $(OPTIONS)

clean:
	rm -rf .venv .venv-bench .demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
