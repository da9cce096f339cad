"""Binary files as text inside an HTML page: seven bits a character, an eighth more than the file itself."""

from __future__ import annotations

import zlib

import numpy as np

#: Characters that an HTML parser changes, that end a script element, or that end a line in files that are converted.
_FORBIDDEN = np.array([0, ord("\n"), ord("\r"), ord("<")], np.uint8)
_FIRST_PAIR = 0x100  # U+0100 to U+02FF, letters alone, stand for a forbidden group and its successor


def embed(content: bytes) -> str:
    r"""Encode bytes as characters that an HTML page in UTF-8 keeps, for ``extract`` in app.js.

    A group of seven bits is the ASCII character of its value. A group whose character is forbidden (NUL, line feed,
    carriage return, ``<``) and the group after it are one character from U+0100 on, whose two bytes are as long as two
    ASCII characters. So the text has 8/7 of the bytes of the content.
    """
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    groups = np.zeros(-(-len(bits) // 7) + 1, np.uint8)  # and a successor of the last one
    padded = np.zeros((len(groups), 7), np.uint8)
    padded.reshape(-1)[: len(bits)] = bits
    groups[:] = np.packbits(padded, axis=1)[:, 0] >> 1
    characters = groups.astype("<u2")
    kept = np.ones(len(groups), bool)
    kept[-1] = False
    previous = -2
    for at in np.flatnonzero(np.isin(groups[:-1], _FORBIDDEN)).tolist():
        if at == previous + 1:  # already part of a pair
            continue
        rank = int(np.searchsorted(_FORBIDDEN, groups[at]))
        characters[at] = _FIRST_PAIR + 128 * rank + int(groups[at + 1])
        kept[at + 1] = False
        previous = at
    return characters[kept].tobytes().decode("utf-16-le")


def compress(content: bytes) -> bytes:
    """Compress by gzip. Equal contents give equal bytes."""
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(content) + packer.flush()


def compress_float16(content: bytes) -> bytes:
    """Compress a file of float16 numbers by gzip: all low bytes, then all high bytes."""
    planes = np.frombuffer(content, np.uint8)
    packer = zlib.compressobj(9, wbits=31, memLevel=9, strategy=zlib.Z_FILTERED)
    return packer.compress(np.concatenate([planes[::2], planes[1::2]]).tobytes()) + packer.flush()
