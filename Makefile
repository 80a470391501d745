# Two commands do everything: `make run` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test setup lint types unit overhead fuzz soak locks clean

run: setup  ## the six reference tests on the embedded target, in minutes
	$(BIN)/kvgauge run --quick

setup: $(VENV)/ready
	@$(BIN)/kvgauge builds install --reference --quiet

$(VENV)/ready: requirements/dev.lock requirements/install.py pyproject.toml
	$(PYTHON) requirements/install.py $(VENV)

test: setup lint types unit  ## everything CI runs

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

unit: $(VENV)/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=85

soak: setup  ## 20 minutes of load with a worker killed every minute
	$(BIN)/python overhead/soak.py

fuzz: setup  ## a million answers no server should send
	$(BIN)/python overhead/fuzz.py

overhead: setup  ## what kvgauge itself costs, and how true and fast its client is
	$(BIN)/python overhead/stack.py
	$(BIN)/python overhead/fidelity.py --quick

locks:  ## renew the pins (needs uv); no index address is written
	uv pip compile -q pyproject.toml --universal --generate-hashes --no-annotate --python-version 3.11 --no-header --extra dev -o requirements/dev.lock
	uv pip compile -q pyproject.toml --universal --generate-hashes --no-annotate --python-version 3.11 --no-header -o requirements/run.lock
	echo virtualenv | uv pip compile -q - --universal --generate-hashes --no-annotate --python-version 3.11 --no-header -o requirements/virtualenv.lock

clean:
	rm -rf $(VENV) $(VENV)-helper .mypy_cache .ruff_cache .pytest_cache
