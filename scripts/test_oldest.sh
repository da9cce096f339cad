#!/usr/bin/env bash
# A part of the tests, chosen so that every dependency is used, with the oldest versions that pyproject.toml declares.
# Installs them and the wheel that is given into the Python environment that is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
oldest=$(mktemp)
trap 'rm -f "$oldest"' EXIT
python scripts/minimum_versions.py test >"$oldest"
pip install --quiet --no-compile -c "$oldest" "$1[takecover]" pytest pytest-timeout hypothesis cma

# Their own deprecated calls are not ours to fix. How fast CMA-ES converges is no matter of versions.
python -m pytest -q -W ignore::DeprecationWarning -k "not evaluations" \
  tests/support/test_files.py tests/data tests/cmaes/test_cmaes.py tests/dream/test_{dream_env,rng}.py \
  tests/models/test_{controller,weights}.py tests/envs/test_take_cover.py tests/analysis/test_{playback,stats}.py \
  tests/faults/test_pickling.py \
  tests/training/test_training.py::test_{every_step_draws_its_own_numbers,a_sheet_is_drawn_at_checkpoints_and_after_epochs_far_apart}
