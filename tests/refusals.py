"""What may become of strange input: it works, or it is refused with an error of ours, in a limited memory."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

REFUSALS = (ValueError, TypeError, FileNotFoundError, MemoryError)


@contextlib.contextmanager
def little_memory(megabytes: int = 1024) -> Iterator[None]:
    """A limit to what may be allocated beside what is: to overstep it is a MemoryError or the end of the process."""
    if sys.platform != "linux":
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(
    work: Callable[[], Value], names: str = "", refusals: tuple[type[Exception], ...] = REFUSALS
) -> Value | None:
    """What `work` gives, or None where it refuses with an error of ours: of a plain type, with a name in front."""
    try:
        return work()
    except refusals as error:
        if not isinstance(error, MemoryError):  # NumPy has a kind of its own
            assert type(error) in refusals, f"unexplained: {error!r}"
            assert ": " in str(error), f"unexplained: {error!r}"
            if names:
                assert names in str(error), f"expected {names!r} to be named by: {error!r}"
        return None


def a_file(path: Path, data: bytes) -> Path:
    """Writes it and returns the path."""
    path.write_bytes(data)
    return path


def without_checksum(path: Path) -> bytes:
    """A safetensors file of ours as a stranger would have it: a change in it is not noticed by its sum."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if header["__metadata__"].pop("crc32", None) is None:
        about = json.loads(header["__metadata__"]["about"])
        del about["crc32"]
        header["__metadata__"]["about"] = json.dumps(about)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


#: What callers pass for numbers: at the ends of every kind of integer and float, and what is no number at all.
STRANGE = [
    *(0, 1, -1, 2, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**400),
    *(0.5, -0.0, 1e-45, 3.5e38, 1e308, math.inf, -math.inf, math.nan, True, False, None),
    *("", "1", "x", b"1", [], [1], {}, 1j),
    *(np.float32(2), np.int8(-1), np.uint64(2**64 - 1), np.bool_(1), np.array(2), np.array([2.0])),
]
