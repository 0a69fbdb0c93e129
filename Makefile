# `make demo` trains on real images; `make test` proves that it works. Both set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
OLDEST := .venv-oldest
INSTALLED_OLDEST := $(OLDEST)/.installed
# The least that setup.py admits; Triton 3.6's interpreter takes no numpy from 2.4 on.
OLDEST_VERSIONS := torch==2.11.0 torchvision==0.26.0 triton==3.6.0 'numpy<2.4'
# torch 2.11's own forward-mode rules, compiler and CommDebugMode do what it warns of; what the executor knows of PTX is the newest Triton's.
OLDEST_OPTIONS := -W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning' \
	-W 'ignore:`torch.jit.script_method` is deprecated:DeprecationWarning' \
	-W "ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning" -W 'ignore:Full backward hook is firing:UserWarning' \
	--ignore tests/kernels/tools/ptx
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements.lock

.PHONY: help demo test test-slow test-gpu bench-gpu test-ptx test-oldest test-browser test-slurm test-integrations docs commands bench bench-timm faults kills errors fuzz check lint house format lock ffcv clean
help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s :

demo: $(INSTALLED)  ## Set up, train on handwritten digits in three to six minutes, print and draw what was memorised, by depth
	$(BIN)/torchrun --standalone --nproc-per-node 1 engine/train.py --config configs/digits_vit.yaml --config configs/digits_memory.yaml $(ARGS)

test: $(INSTALLED_DEV)  ## Set up and run the default tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(INSTALLED_DEV)  ## Run the tests that take more than a minute each
	$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: $(if $(PYTHON_OF),,$(INSTALLED_DEV))  ## Run the tests that need a CUDA device, on a machine that has one (PYTHON_OF=python3: with that Python, installing nothing)
	$(or $(PYTHON_OF),$(BIN)/python) -m pytest -m gpu --continue-on-collection-errors tests/gpu $(ARGS)

bench-gpu: $(if $(PYTHON_OF),,$(INSTALLED))  ## Ask a first GPU everything: loss, engine, step, compile modes, augmentation, loaders, sanitizers (ten minutes; RANKS=4, ARGS="--device cpu", PYTHON_OF=python3)
	$(or $(PYTHON_OF),$(BIN)/python) benchmarks/bench_gpu.py $(ARGS)

test-ptx: $(INSTALLED_DEV)  ## Execute every GPU kernel on the CPU, as compiled for three chips (half an hour)
	$(BIN)/python -m pytest -m 'slow or not slow' tests/kernels/tools/ptx $(ARGS)

test-oldest: $(INSTALLED_OLDEST)  ## Run the tests of kernels, heads, engine and ranks on the oldest torch and Triton, in a venv of their own
	$(OLDEST)/bin/python -m pytest -m 'not slow and not gpu and not fuzz' $(OLDEST_OPTIONS) $(or $(ARGS),tests/kernels tests/memorization tests/engine tests/distributed)

test-browser: $(INSTALLED_DEV)  ## Open the report in a browser (Debian's chromium; axe-core comes by npm)
	npm install --no-audit --no-fund --prefix build/browser axe-core@4
	$(BIN)/python -m pytest -m browser tests/engine/page $(ARGS)

test-slurm: $(INSTALLED_DEV)  ## Install Slurm (as root, on Debian), run the batch script on two nodes of one machine
	$(BIN)/python -m pytest -m slurm -s tests/launch $(ARGS)

test-integrations: $(INSTALLED_DEV)  ## Install Lightning, transformers and cleanlab; run the callbacks and examples that need them
	$(PIP) --editable '.[lightning,transformers,cleanlab]'
	$(BIN)/python -m pytest -m integrations tests/engine/integrations tests/examples $(ARGS)

bench: $(INSTALLED_DEV)  ## Measure a short form of each benchmark of the engine (eight minutes on two quiet cores)
	$(BIN)/python benchmarks/bench_startup.py --rounds 3
	$(BIN)/python benchmarks/bench_epoch_end.py
	$(BIN)/python benchmarks/bench_step.py --quick
	$(BIN)/python benchmarks/bench_step_guard.py --quick
	$(BIN)/python benchmarks/bench_scaling.py --quick
	$(BIN)/python benchmarks/bench_augment.py --asked
	$(BIN)/python benchmarks/bench_loaders.py --only float --rounds 3 --images 384
	$(BIN)/python benchmarks/bench_few_labels.py --quick
	$(BIN)/python benchmarks/bench_checkpoint.py --quick

bench-timm: $(INSTALLED_DEV)  ## Whole runs beside timm's train.py (TIMM=CHECKOUT of pytorch-image-models)
	$(BIN)/python benchmarks/bench_step.py --timm $(TIMM) $(ARGS)

faults: $(INSTALLED_DEV)  ## Inject every fault of benchmarks/faults.yaml and write docs/faults.md (an hour; ARGS="--only NAME")
	$(BIN)/python benchmarks/fault_table.py $(ARGS)

kills: $(INSTALLED_DEV)  ## Kill and stop runs at 200 random moments and in every phase (hours; ARGS="--count 20" for the random ones)
	$(BIN)/python benchmarks/random_kills.py $(ARGS); random=$$?; $(BIN)/python benchmarks/phase_kills.py && exit $$random

errors: $(INSTALLED_DEV)  ## Count the wrong configs, trees, files, checkpoints and environments that are answered as promised
	$(BIN)/python -m pytest -q -m 'wrong and not gpu and not fuzz' tests $(ARGS)

fuzz: $(INSTALLED_DEV)  ## Mutate settings, trees, images and run folders some ten thousand times each, and train with settings drawn together (minutes)
	$(BIN)/python -m pytest -q -m fuzz tests/fuzz $(ARGS)

check: $(INSTALLED_DEV) lint  ## Lint and the fast tests (a minute and a half on two quiet cores)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not fuzz and not slurm and not integrations and not browser and not distributed and not long' $(ARGS)

docs: $(INSTALLED_DEV)  ## Build the site with the reference into build/docs, and check its links
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs $(JOBS) -c docs/site . build/docs

commands: $(INSTALLED_DEV)  ## Run every command of README and docs, made cheap, and say which fail (ten minutes)
	$(BIN)/python scripts/run_docs.py $(ARGS)

lint: $(INSTALLED_DEV)  ## ruff, mypy, and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint launch/Dockerfile

house: $(INSTALLED_DEV)  ## Measure the house: files a folder, floors, arrows, the longest function and file
	$(BIN)/python scripts/house.py

format: $(INSTALLED_DEV)  ## Format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(INSTALLED_DEV)  ## Write the versions that are installed into requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^#' > requirements.lock

ffcv: $(INSTALLED)  ## Install FFCV, for --data.loader ffcv; demo and test do it too, where it can be done
	@./setup_ffcv.sh

clean:  ## Remove the virtual environment and caches (never runs/)
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rlpheads needs Python 3.11 or newer; name one: make PYTHON=python3.12 demo"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/pyvenv.cfg setup.py pyproject.toml requirements.lock setup_ffcv.sh
	@echo "installing rlpheads into $(VENV) (a minute or two; nothing to do next time)"
	@$(PIP) --editable '.[dali]' || \
		{ echo "NVIDIA DALI is not to be had here: going on without it (data.loader: torch decodes)"; $(PIP) --editable .; }
	@./setup_ffcv.sh
	@touch $@

$(INSTALLED_OLDEST): setup.py pyproject.toml requirements.lock
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*|numpy|pandas|optype|numpy-typing-compat|scipy-stubs)==' requirements.lock > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(OLDEST)/constraints.txt $(OLDEST_VERSIONS) --editable '.[test]'
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "installing what the tests and the linters need"
	$(PIP) --editable '.[test,lint]'
	@touch $@
