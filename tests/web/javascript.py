"""Run code with worldmodels.js in Node."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import worldmodels.web

ASSETS = Path(worldmodels.web.__file__).parent / "assets"
MODULE, WASM = ASSETS / "worldmodels.js", ASSETS / "dream.wasm"

_PROGRAM = """
import fs from "node:fs";
const { module, wasm, weights } = JSON.parse(process.argv[1]);
const api = await import("data:text/javascript;base64," + fs.readFileSync(module).toString("base64"));
const files = { wasm: fs.readFileSync(wasm), weights: weights && fs.readFileSync(weights) };
const load = (changed = {}) => api.WorldModel.load({ ...files, ...changed });
const message = async (work) => {
  try { await work(); return null; } catch (error) { return `${error.name}: ${error.message}`; }
};
const packed = (key, value) => {
  if (!ArrayBuffer.isView(value)) return value;
  const { buffer, byteOffset, byteLength } = value;
  return { type: value.constructor.name, data: Buffer.from(buffer, byteOffset, byteLength).toString("base64") };
};
const run = async (given) => { %s };
console.log(JSON.stringify(await run(JSON.parse(fs.readFileSync(0, "utf-8"))), packed));
"""
_TYPES = {
    "Float32Array": np.float32,
    "Float64Array": np.float64,
    "Uint32Array": np.uint32,
    "Uint8Array": np.uint8,
    "Uint8ClampedArray": np.uint8,
}


def run(code: str, weights: Path | None = None, given: Any = None) -> Any:
    """Run the body of an asynchronous function with ``api``, ``files``, ``load``, ``message`` and ``given``.

    Returns:
        Its return value; typed arrays become NumPy arrays.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node: install nodejs")
    if not WASM.is_file():
        pytest.skip("there is no dream.wasm: install ziglang and build again")
    files = {"module": str(MODULE), "wasm": str(WASM), "weights": weights and str(weights)}
    done = subprocess.run(
        [node, "--input-type=module", "-e", _PROGRAM % code, json.dumps(files)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, object_hook=_unpacked)


def _unpacked(value: dict[str, Any]) -> Any:
    if set(value) != {"type", "data"}:
        return value
    return np.frombuffer(base64.b64decode(value["data"]), _TYPES[value["type"]])
