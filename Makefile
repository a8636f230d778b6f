# make demo          data, autoencoder, training and a picture of new faces: five minutes on two cores
# make paint         paint masks and see their faces, in a browser; after make demo
# make demo-style    a model that takes the style of reference faces, in ten minutes more
# make demo-long     the same for half an hour, with a better picture
# make report        a face parser, and what the demo's model is measured to do
# make test          the tests
# make test-kernels  those of the selective scan
# make test-gpu      the scan on an NVIDIA GPU, with EXTRAS=test,cuda12; times go to TIMES=
# make test-slow     the long ones (TESTS= to choose)
# make lint          ruff, shellcheck, notebooks without outputs
# make figures       the pictures of README and docs/ and the demos' figures, in an hour, in a new checkout
#
# Everything runs in a virtual environment of its own, made from PYTHON with EXTRAS of pyproject.toml:
#   make test PYTHON=python3.12 EXTRAS=test,cuda12 VENV=.venv-3.12
# CONSTRAINTS=.ci/constraints-3.11.txt installs no version newer than those that were tested.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,\
            $(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
EXTRAS ?= test
VENV ?= .venv
CONSTRAINTS ?=
TIMES ?= runs/scan_times.json

PY := $(VENV)/bin/python
comma := ,
# Two JAX devices on a CPU: a device runs the scan's loop over time on one core.
TRAIN := JAX_NUM_CPU_DEVICES=2 $(PY) -m sisma_jax.train
INSTALLED := $(VENV)/.installed-$(subst /,_,$(PYTHON))-$(subst $(comma),_,$(EXTRAS))

# Huge pages save about a fifth of a training step on a CPU; glibc reads this before Python starts.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export PYTHONUNBUFFERED = 1

.PHONY: help install demo demo-style paint demo-long report test test-kernels test-gpu test-slow lint figures
help:
	@sed -n '/^$$/q; s/^# \?//p' Makefile

install: $(INSTALLED)
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or give PYTHON=..."; exit 1; }
	@test -e $(PY) && test "$$($(PY) -V)" = "$$($(PYTHON) -V)" || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS)) \
	  -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-* && touch $@

demo: $(INSTALLED)
	$(PY) -m sisma_jax.data.synthetic --out data/synthetic --count 4096 --size 64 --seed 0
	$(PY) -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder
	$(TRAIN) --config configs/synthetic.py --workdir runs/demo
	$(PY) -m sisma_jax.demo --workdir runs/demo

paint:
	$(MAKE) --no-print-directory install EXTRAS=$(EXTRAS),paint
	$(PY) -m sisma_jax.paint --workdir runs/demo

demo-style: demo
	$(TRAIN) --config configs/synthetic_style.py --workdir runs/demo-style
	$(PY) benchmarks/style_bench.py --workdirs runs/demo-style --out runs/demo-style/styles

demo-long: $(INSTALLED)
	$(PY) -m sisma_jax.data.synthetic --out data/synthetic-long --count 15360 --size 64 --seed 0
	$(PY) -m sisma_jax.train_autoencoder --config configs/autoencoder.py:long --workdir runs/autoencoder-long
	$(TRAIN) --config configs/synthetic.py:long --workdir runs/demo-long
	$(PY) -m sisma_jax.demo --workdir runs/demo-long

report: demo
	$(PY) -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser
	$(PY) -m sisma_jax.evaluate --workdir runs/demo --out runs/demo/report

test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile --durations 30

test-kernels: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile tests/kernels

test-gpu: $(INSTALLED)
	JAX_PLATFORMS=cuda $(PY) -m pytest -m gpu -rs tests/kernels/test_on_gpu.py --times $(TIMES)

test-slow: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile --durations 60 -m "slow and not night" $(TESTS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/shellcheck .ci/run .ci/installed .ci/freeze launch/*.sh launch/*.sbatch
	$(VENV)/bin/nbstripout --verify --keep-id launch/*.ipynb

figures:
	$(MAKE) --no-print-directory install EXTRAS=$(EXTRAS),browser
	$(PY) benchmarks/demo_bench.py --target demo
	$(PY) benchmarks/demo_bench.py --target demo-long
	$(PY) benchmarks/edit_bench.py --workdir runs/demo
	$(PY) benchmarks/paint_screenshot.py --workdir runs/demo --out benchmarks/results/paint.png
	$(PY) benchmarks/scan_bench.py
