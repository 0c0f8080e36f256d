# make demo    environment, build, and the main job from images to a refined answer, offline
# make test    every test: linters, types, C tests under sanitizers, Python and SQL tests on DuckDB 2.0 and 1.5
# make bench   measurements against the peers, 1M and 10M rows: build/bench/report.md (some 25 minutes on two cores)
# make bench-learners DATA=FOLDER  quality of the learners; resumable, up to an hour (benchmarks/README.md)
# make bench-codes DATA=FOLDER  what 32 bytes keep of an embedding (table 1 of docs/HEADS.md), some six minutes
# make bench-paper-scale   260M rows; needs 16 GB of disk and up to an hour
# make format  puts C and Python sources in the project's form
# make clean   removes what the others made
#
# Needs a C compiler and Python 3.11 or newer with venv; everything else is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILD  := build
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

SOURCES  := $(shell find engine sql pyproject.toml constraints.txt README.md LICENSE -type f \
              -not -path '*/__pycache__/*' -not -name '*.pyc' 2>/dev/null)
C_FILES  := $(shell find engine/csrc benchmarks -name '*.c' -o -name '*.h' 2>/dev/null)
DUCKDB_OLD := 1.5.6
# pytest options, e.g. make test PYTEST="-k knn -x"
PYTEST ?=
# Two workers, files whole, so that what a file's tests share is made once; torch in each is content with one thread.
RUN_PYTEST = OMP_NUM_THREADS=1 PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pytest -n 2 --dist loadfile
# options of benchmarks/bench.py, e.g. make bench BENCH="--quick"
BENCH ?=
# a folder of real vectors for benchmarks/learners.py and table1.py; without it the scene world alone is measured
DATA ?=

.PHONY: demo test lint test-c test-threads test-faults test-python chromium test-duckdb-old test-isa bench bench-learners bench-codes bench-paper-scale format clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/boxwood demo

test: lint test-c test-threads test-faults test-duckdb-old test-isa test-python

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package with what the demo needs, built from this tree. torch first and alone, so that nothing asks for another one.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(PIP) torch
	$(PIP) ".[clip,trees,serve]"
	touch $@

# What pyproject.toml names for tests. Installing an extra builds the package once more; that takes seconds.
$(VENV)/tools: pyproject.toml constraints.txt | $(VENV)/installed
	$(PIP) ".[test]"
	touch $@

lint: $(VENV)/installed $(VENV)/tools
	$(BIN)/ruff check engine tests benchmarks
	$(BIN)/ruff format --check engine tests benchmarks
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy

test-c: $(VENV)/tools
	$(BIN)/cmake -S engine/csrc -B $(BUILD)/ctest -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DBOXWOOD_TESTS=ON -DBOXWOOD_SANITIZE=ON -DBOXWOOD_FAULTS=ON
	$(BIN)/cmake --build $(BUILD)/ctest
	cd $(BUILD)/ctest && $(CURDIR)/$(BIN)/ctest --output-on-failure --parallel 2

# The C core under ThreadSanitizer.
test-threads: $(VENV)/tools
	$(BIN)/cmake -S engine/csrc -B $(BUILD)/tsan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DBOXWOOD_TESTS=ON -DBOXWOOD_TSAN=ON
	$(BIN)/cmake --build $(BUILD)/tsan --target test_threads
	cd $(BUILD)/tsan/test && ./test_threads

# The whole store over a core whose memory and files fail; what the C tests do for the core alone.
test-faults: $(VENV)/installed $(VENV)/tools
	$(BIN)/cmake -S engine/csrc -B $(BUILD)/faults -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DBOXWOOD_FAULTS=ON
	$(BIN)/cmake --build $(BUILD)/faults
	BOXWOOD_EXTENSION=$(CURDIR)/$(BUILD)/faults/boxwood.duckdb_extension \
	    $(RUN_PYTEST) --dist load tests/test_faults.py $(PYTEST)

# The other DuckDB that is supported: the files that use its API, but for tests marked "one_duckdb".
$(BUILD)/duckdb-$(DUCKDB_OLD): $(VENV)/bin/python
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --target $@ duckdb==$(DUCKDB_OLD)

test-duckdb-old: $(VENV)/installed $(VENV)/tools | $(BUILD)/duckdb-$(DUCKDB_OLD)
	PYTHONPATH=$(BUILD)/duckdb-$(DUCKDB_OLD) $(BIN)/python -c \
	    "import duckdb; assert duckdb.__version__ == '$(DUCKDB_OLD)', duckdb.__version__"
	PYTHONPATH=$(CURDIR)/$(BUILD)/duckdb-$(DUCKDB_OLD) BOXWOOD_MACHINES=8 \
	    $(RUN_PYTEST) tests/test_sql.py tests/test_collection.py tests/test_store_machine.py \
	    tests/test_clip_sql.py tests/test_recode.py tests/test_live_sql.py -m "not one_duckdb" $(PYTEST)

# And with the plain C kernels, the oracle of the others: the tests of what searches and trains. The C tests compare each
# kernel of each instruction set with the plain one as well.
test-isa: $(VENV)/installed $(VENV)/tools
	BOXWOOD_FORCE_ISA=generic $(RUN_PYTEST) tests/test_sql.py \
	    -k "equals or golden or instruction or refine or train or fine or threads" $(PYTEST)

# The browser of tests/test_browser.py: Debian's, where there is none and it can be installed. The run goes on without one.
chromium:
	@for name in "$$BOXWOOD_CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
	    if command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends chromium >/dev/null; then exit 0; fi; \
	echo "no Chromium, and it cannot be installed here: the browser tests are skipped (BOXWOOD_CHROMIUM names one)"

test-python: $(VENV)/installed $(VENV)/tools chromium
	$(RUN_PYTEST) $(PYTEST)

# The peers are optional: what cannot be installed here is left out of the measurements.
$(VENV)/peers: pyproject.toml constraints.txt | $(VENV)/installed
	$(PIP) ".[bench]" || echo "not every peer can be installed; those are left out"
	touch $@

bench: $(VENV)/installed $(VENV)/peers
	$(BIN)/python benchmarks/bench.py all $(BENCH)

bench-learners: $(VENV)/installed $(VENV)/peers
	$(BIN)/python benchmarks/learners.py all $(DATA) $(BENCH)

bench-codes: $(VENV)/installed $(VENV)/peers
	$(BIN)/python benchmarks/table1.py $(DATA) $(BENCH)

bench-paper-scale: $(VENV)/installed $(VENV)/peers
	$(BIN)/python benchmarks/bench.py paper-scale $(BENCH)

format: $(VENV)/tools
	$(BIN)/ruff check --fix engine tests benchmarks
	$(BIN)/ruff format engine tests benchmarks
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf $(VENV) $(BUILD) boxwood-demo
