#!/usr/bin/env bash
# The native core under GCC's address and undefined behaviour sanitizers, Clang's thread and memory sanitizers and
# Valgrind: its C++ tests under each, and the Python tests that call it under the first. Any report is a failure.
# Wants clang, libomp-dev and valgrind, and a Python (python, or $PYTHON) with the package and its test extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
preset() {
  echo "== C++ tests: $1"
  cmake --preset "$@" >/dev/null
  cmake --build --preset "$1"
  ctest --preset "$1"
}

# GCC's libgomp hides its barriers from the thread sanitizer, which would then report every parallel loop. Clang's
# libomp tells it of them through Archer; a race planted among the tests shows that real ones are still reported.
preset tsan

# Reads of uninitialised memory: Valgrind sees everything but AVX-512, the memory sanitizer the kernels of all levels.
preset msan
preset core
for name in kernels core cmaes threads; do
  echo "== Valgrind: $name"
  valgrind -q --error-exitcode=1 build/core/tests/cpp/test_"$name"
done

preset sanitize -DWORLDMODELS_BUILD_PYTHON=ON -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"

# The sources and the sanitized _core in one folder, and a Python that sees it first: a venv with the packages of
# $python on its path, but without the import hook of an editable install.
echo "== Python tests: address and undefined behaviour"
site=$PWD/build/sanitize/site venv=$PWD/build/sanitize/venv
rm -rf "$site" "$venv"
cmake --install build/sanitize --prefix "$site" >/dev/null
cp -r python/worldmodels/. "$site/worldmodels"
"$python" -m venv --without-pip "$venv"
{ echo "$site" && "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")'; } \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sanitize.pth"

# libstdc++ too: the sanitizer must see it before Python starts, or it cannot follow a C++ exception. Python itself
# and what it loads leak by design. pytest must leave file descriptor 2 alone, or it swallows the report.
preload=$(printf '%s ' "$(g++ -print-file-name=libasan.so)" "$(g++ -print-file-name=libubsan.so)" \
  "$(g++ -print-file-name=libstdc++.so.6)")
run() { LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 "$venv/bin/python" "$@"; }
run -c "import torch, worldmodels._core as c; assert c.__file__.startswith('$site'), c.__file__"
# The address sanitizer ends a process whose memory runs out.
run -m pytest -q --capture=sys -p no:cacheprovider -m "not slow" -k "not memory_ran_out" \
  tests/dream/test_{dream,dream_env,kernels,rng}.py tests/cmaes/test_cmaes.py tests/pipeline/test_evolve.py \
  tests/models/test_{controller,weights,lstm_state,encoder,decoder,agent}.py \
  tests/training/test_{rnn_loss,native_vae}.py tests/faults/test_{concurrency,pickling}.py
