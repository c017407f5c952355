"""Bits per byte of general-purpose compressors: the yardstick that knows nothing of tokens."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence

DEFLATE_WINDOW_BYTES = 32_768


def gzip_bits(texts: Sequence[bytes], dictionary: bytes = b"") -> int:
    """Return the bits that DEFLATE at level 9 needs for texts, each alone (raw streams: no header, no checksum).

    Parameters
    ----------
    texts : sequence of bytes
        Compressed one by one.
    dictionary : bytes
        Text that compressor and reader both know; its last 32 KiB can be referred to.
    """
    total = 0
    for text in texts:
        known = dictionary[-DEFLATE_WINDOW_BYTES:]
        primed = {"zdict": known} if known else {}
        stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, **primed)
        total += 8 * len(stream.compress(text) + stream.flush())
    return total


def lzma_bits(texts: Sequence[bytes], known: bytes) -> int:
    """Return the bits by which LZMA (preset 9, a window of 64 MiB) grows when texts are appended to a known text.

    The texts may refer to one another too, which flatters this yardstick.
    """
    return 8 * (len(lzma.compress(known + b"".join(texts), preset=9)) - len(lzma.compress(known, preset=9)))
