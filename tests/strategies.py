"""What hypothesis draws for the property tests: numbers, JSON and arrays of any kind; and how long it looks."""

from __future__ import annotations

import math
import os

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from refusals import STRANGE

_SLOW = [HealthCheck.too_slow]  # a matter of the machine
settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW
)
settings.register_profile("long", max_examples=5_000, deadline=None, database=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.floats(),
    st.sampled_from(STRANGE),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
FLOATS = [np.float16, np.float32, np.float64, np.dtype(">f4"), np.dtype(">f8"), np.longdouble]


@st.composite
def laid_out(draw, shape, dtypes=FLOATS, finite=True):
    """An array of a shape in any layout: transposed, reversed, with gaps, repeated, misaligned, read-only."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = math.prod(shape)
    values = draw(
        hnp.arrays(np.float64, size, elements=st.floats(-4, 4, width=16) if finite else st.floats(width=32))
    ).reshape(shape)
    with np.errstate(all="ignore"):
        plain = values.astype(dtype)
    match draw(st.sampled_from(["plain", "fortran", "reversed", "gaps", "misaligned", "repeated", "read-only"])):
        case "fortran":
            return np.asfortranarray(plain)
        case "reversed":
            return plain[::-1].copy()[::-1]
        case "gaps":
            return np.repeat(plain, 2, axis=0)[::2]
        case "misaligned":
            buffer = np.zeros(plain.nbytes + 1, np.uint8)[1:]
            out = buffer.view(dtype).reshape(shape) if plain.size else plain
            out[...] = plain
            return out
        case "repeated":
            return np.broadcast_to(plain[:1], shape)
        case "read-only":
            plain.flags.writeable = False
    return plain


ANY_ARRAY = st.one_of(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), st.sampled_from(FLOATS)),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=21),
        fill=st.nothing(),
    ),
    st.sampled_from([None, "params", [[1.0], [1.0, 2.0]], [[None] * 20], {}, torch.zeros(1, 20, requires_grad=True)]),
    st.sampled_from([np.zeros((0, 20)), np.zeros((1, 0)), np.broadcast_to(np.float32(0), (2**31, 20))[:, :0]]),
)


@st.composite
def edited(draw, value):
    """A JSON value in which one place, at any depth, is another value, or missing, or there twice."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    value = value.copy()
    what = draw(st.sampled_from(["inside", "inside", "inside", "gone", "twice"]))
    if what == "gone":
        del value[place]
    elif what == "twice" and isinstance(value, list):
        value.append(value[place])
    else:
        value[place] = draw(edited(value[place]))
    return value
