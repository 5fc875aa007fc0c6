# A short front; CMake does the building (CMakePresets.json). `make demo` and `make test` install what is missing first.
PREFIX ?= /usr/local
WERROR ?= ON
GENERATOR = $(if $(shell command -v ninja),-G Ninja)
JOBS ?= $(shell nproc)
SOURCES = $(wildcard $(addprefix include/,*.h */*.h) $(addprefix src/,*/*.cu */*.cuh */*.[ch] */*/*.[ch] */*.inl */*/*.inl) cli/*.[ch] \
  tests/*.[ch] tests/*/*.[ch] tests/*/*.cpp examples/*.c examples/*.cpp bench/*.[ch])

# Of Python: what the package's tests, checks and benchmark need, and where the package itself is installed.
PYTHON_TOOLS = build/python/tools
PYTHON = build/python/env/bin/python

.PHONY: all setup demo test python bench bench-torch bench-blocks gpu-check plot format check-format check-python install clean
all:
	@cmake --preset release -DNORMROPE_WERROR=$(WERROR) $(if $(wildcard build/CMakeCache.txt),,$(GENERATOR)) >/dev/null
	@cmake --build build --parallel $(JOBS) $(addprefix --target ,$(TARGETS))

setup:
	@scripts/setup.sh

demo: setup
	@$(MAKE) --no-print-directory all TARGETS=normrope-cli
	@scripts/demo.sh

test: setup
	@$(MAKE) --no-print-directory all
	@ctest --test-dir build --output-on-failure -j2
	@$(MAKE) --no-print-directory python
	@NORMROPE_CLI=$(CURDIR)/build/bin/normrope $(PYTHON) -m pytest -n 2 --dist worksteal $(PYTEST)

# The wheel, in an environment of its own below build/ (about 1 GB the first time, most of it PyTorch).
python: $(PYTHON_TOOLS)/installed
	@scripts/python-env.sh

# About a minute; `make bench BENCH="--json --preset flux"` passes options on.
bench: all
	@build/bin/normrope bench $(BENCH)

# Beside PyTorch; `make bench-torch BENCH_TORCH="--preset flux --json build/flux.json"` passes options on.
bench-torch: python
	@$(PYTHON) -m normrope.bench $(BENCH_TORCH)

# A training step of diffusers' blocks, patched and not; `make bench-blocks BENCH_BLOCKS="--block flux"` passes options on.
bench-blocks: python
	@$(PYTHON) -m normrope.bench.blocks $(BENCH_BLOCKS)

# On a machine with an NVIDIA device: builds, tests, sanitizes and measures there, in under 8 minutes, and writes
# build/gpu/report.json and report.txt.
gpu-check:
	@scripts/gpu_check.py $(GPU_CHECK)

# make plot PLOT="build/bench.json build/torch.json -o docs/performance.svg"
plot: python
	@$(PYTHON) -m normrope.bench.plot $(PLOT)

$(PYTHON_TOOLS)/installed: python/requirements.txt
	@python3 -m venv $(PYTHON_TOOLS)
	@$(PYTHON_TOOLS)/bin/pip install --quiet --disable-pip-version-check -r python/requirements.txt
	@touch $@

format: $(PYTHON_TOOLS)/installed
	clang-format -i $(SOURCES)
	$(PYTHON_TOOLS)/bin/ruff format --quiet python examples

check-python: $(PYTHON_TOOLS)/installed
	@$(PYTHON_TOOLS)/bin/ruff format --check --quiet python examples
	@$(PYTHON_TOOLS)/bin/ruff check --quiet python examples
	@$(PYTHON_TOOLS)/bin/mypy python/normrope

check-format:
	@clang-format --dry-run -Werror $(SOURCES)

# Into PREFIX, below DESTDIR where that is set.
install: all
	@cmake --install build --prefix "$(PREFIX)"

clean:
	rm -rf build
