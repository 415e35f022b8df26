# The commands of the README. Everything goes into .venv and build/; `make clean` removes both.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find src -type f -not -name '*.so' -not -path '*/__pycache__/*')
NATIVE_SOURCES := CMakeLists.txt $(wildcard src/native/* tests/native/cpp/*)
GUARDED_OBJECTS := $(patsubst %,build/guards/CMakeFiles/kernels.dir/src/native/kernels_%.cpp.o,avx2 avx512 avx512bf16 amx)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo dev test test-long lint types native-tests guards monitoring cgroup-tests lock clean

demo: $(VENV)/.installed
	$(BIN)/openautoglm run demo "What does textwrap.dedent do?" --max-tokens 120 --temperature 0

# For working on the native core: builds it into the source tree, to be used with PYTHONPATH=src.
dev: $(VENV)/.installed-test
	$(BIN)/cmake -S . -B build/dev -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DOPENAUTOGLM_DEV=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/dev

# Portable tests: any Debian, no root, no accelerator, no network beyond the package index. A process for each core, and
# a file's tests in one of them.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not long and not cgroup" tests

# Some need a memory cgroup, as cgroup-tests do, and up to 9 GiB.
test-long: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "long" tests

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks

types: $(VENV)/.installed-lint
	$(BIN)/mypy

# The native core's own C++ test program under sanitizers: all of it for addresses and undefined behaviour, the
# decoder's step and its threads for data races.
native-tests: $(VENV)/.installed-test
	$(MAKE) build/sanitize-address,undefined/native_tests build/sanitize-thread/native_tests
	build/sanitize-address,undefined/native_tests
	build/sanitize-thread/native_tests decoder
	build/sanitize-thread/native_tests thread_pool
	build/sanitize-thread/native_tests weight_stream

build/sanitize-%/native_tests: $(NATIVE_SOURCES)
	$(BIN)/cmake -S . -B build/sanitize-$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DOPENAUTOGLM_SANITIZE=ON -DOPENAUTOGLM_SANITIZERS=$*
	$(BIN)/cmake --build build/sanitize-$*

# What a step costs in instructions, waits, allocations and spilled registers: the same on a busy machine and an idle
# one. Needs valgrind and objdump: fails, never skips, without them.
guards: $(VENV)/.installed-test
	$(BIN)/cmake -S . -B build/guards -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DOPENAUTOGLM_GUARDS=ON
	$(BIN)/cmake --build build/guards
	$(BIN)/python tools/check_spills.py $(GUARDED_OBJECTS)
	build/guards/guard_allocations
	$(BIN)/python tools/count_instructions.py --build build/guards
	$(BIN)/python -m pytest -q tests/executor/test_barriers.py

# Alert rules, by Prometheus' own checker. Debian has it in a package whose installation would start a server.
monitoring: build/tools/promtool
	build/tools/promtool check rules deploy/monitoring/alerts.yml
	build/tools/promtool check config --syntax-only deploy/monitoring/prometheus.yml
	build/tools/promtool test rules deploy/monitoring/alerts_test.yml

build/tools/promtool:
	mkdir -p build/tools/prometheus
	cd build/tools/prometheus && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }
	cd build/tools/prometheus && dpkg-deb -x prometheus_*.deb .
	cp build/tools/prometheus/usr/bin/promtool $@
	rm -r build/tools/prometheus

# Needs root or a delegated memory cgroup: fails, never skips, where none can be made.
cgroup-tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "cgroup and not long" tests

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip $(SOURCES)
	$(BIN)/pip install -q --upgrade .
	touch $@

# The installed package names its extras: nothing is built again for them.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install -q "openautoglm[test]" cmake ninja nanobind
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(BIN)/pip install -q "openautoglm[lint]"
	touch $@

lock: $(VENV)/.installed-lint
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze | grep -viE '^(pip|setuptools|openautoglm)\b' | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist
