# A short front; CMake does the building (CMakePresets.json). `make demo` and `make test` install what is missing first.
PREFIX ?= /usr/local
WERROR ?= ON
GENERATOR = $(if $(shell command -v ninja),-G Ninja)
JOBS ?= $(shell nproc)
SOURCES = $(wildcard $(addprefix include/,*.h */*.h) $(addprefix src/,*/*.cu */*.cuh */*.[ch] */*/*.[ch] */*.inl */*/*.inl) cli/*.[ch] \
  tests/*.[ch] tests/*/*.[ch] tests/*/*.cpp examples/*.c examples/*.cpp bench/*.[ch])

BENCH_VENV = build/bench-venv

.PHONY: all setup demo test bench bench-torch gpu-check plot format check-format install clean
all:
	@cmake --preset release -DNORMROPE_WERROR=$(WERROR) $(if $(wildcard build/CMakeCache.txt),,$(GENERATOR)) >/dev/null
	@cmake --build build --parallel $(JOBS)

setup:
	@scripts/setup.sh

demo: setup
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh

test: setup
	@$(MAKE) --no-print-directory all
	@ctest --test-dir build --output-on-failure -j2

# About a minute; `make bench BENCH="--json --preset flux"` passes options on.
bench: all
	@build/bin/normrope bench $(BENCH)

# Beside PyTorch; `make bench-torch BENCH_TORCH="--preset flux --json build/flux.json"` passes options on. About 1 GB is
# installed below build/ the first time.
bench-torch: all $(BENCH_VENV)/installed
	@$(BENCH_VENV)/bin/python bench/compare_torch.py $(BENCH_TORCH)

# On a machine with an NVIDIA device: builds, tests, sanitizes and measures there, in under 8 minutes, and writes
# build/gpu/report.json and report.txt.
gpu-check: setup
	@scripts/gpu_check.py $(GPU_CHECK)

# make plot PLOT="build/bench.json build/torch.json -o docs/performance.svg"
plot: $(BENCH_VENV)/installed
	@$(BENCH_VENV)/bin/python bench/plot.py $(PLOT)

$(BENCH_VENV)/installed: bench/requirements.txt
	@python3 -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@

format:
	clang-format -i $(SOURCES)

check-format:
	@clang-format --dry-run -Werror $(SOURCES)

# Into PREFIX, below DESTDIR where that is set.
install: all
	@cmake --install build --prefix "$(PREFIX)"

clean:
	rm -rf build
