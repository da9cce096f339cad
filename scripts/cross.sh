#!/usr/bin/env bash
# The core by GCC and Clang for this machine and by GCC for aarch64 (under QEMU): all C++ tests, and the same bits
# from all three. Wants clang, libomp-dev, g++-aarch64-linux-gnu and qemu-user.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bits() { "${@:2}" "build/$1/tests/cpp/test_core" bits; }
for preset in core clang aarch64; do
  cmake --preset $preset >/dev/null
  cmake --build --preset $preset
  ctest --preset $preset
done
all=$(bits core && bits clang && bits aarch64 qemu-aarch64 -L /usr/aarch64-linux-gnu)
echo "$all"
[[ $(sort -u <<<"$all" | wc -l) == 1 ]] || { echo "expected the same bits of GCC, Clang and aarch64" >&2 && exit 1; }
