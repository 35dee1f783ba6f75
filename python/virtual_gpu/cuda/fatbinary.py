"""PTX from fat binaries: what nvcc puts into objects and libraries, and hands to the CUDA runtime when they are loaded.

A fat binary is a header and entries, each machine code or PTX for one architecture, compressed or not. The format is
not documented; what is read here is what nvcc 12 and 13 write, and anything else is refused.
"""

import ctypes
import ctypes.util
import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of the header, bytes of what follows
_ENTRY = struct.Struct("<HHIQIIIIIIQQQ")
_PTX = 1
_ZSTANDARD = 0x8000
_OTHER_COMPRESSION = 0x2000


class Ptx(NamedTuple):
    """One program, for GPUs of compute capability `target` (80, 90, ...) and later."""

    target: int
    text: str


def header_bytes(head: bytes) -> int:
    """Bytes of the fat binary that begins with these 16."""
    magic, _, own, rest = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise ValueError(f"no fat binary: it begins with {magic:#x}")
    return int(own + rest)


def programs(binary: bytes) -> list[Ptx]:
    """The PTX in one fat binary."""
    _, _, own, rest = _HEADER.unpack_from(binary)
    found, at = [], own
    while at < own + rest:
        kind, _, head, payload, packed, _, _, target, _, _, flags, _, unpacked = _ENTRY.unpack_from(binary, at)
        if kind == _PTX:
            body = binary[at + head : at + head + payload]
            found.append(Ptx(target, _unpacked(body, flags, packed, unpacked).rstrip(b"\0").decode()))
        at += head + payload
    return found


def in_file(data: bytes) -> Iterator[Ptx]:
    """The PTX of every fat binary in an object file or library."""
    at = data.find(struct.pack("<I", MAGIC))
    while at >= 0:
        size = header_bytes(data[at : at + _HEADER.size])
        yield from programs(data[at : at + size])
        at = data.find(struct.pack("<I", MAGIC), at + size)


def _unpacked(body: bytes, flags: int, packed: int, unpacked: int) -> bytes:
    if flags & _ZSTANDARD:
        made = ctypes.create_string_buffer(unpacked)
        count = _zstandard().ZSTD_decompress(made, unpacked, body, packed)
        if count != unpacked:
            raise ValueError(f"compressed PTX is damaged: {count} bytes came of it, not {unpacked}")
        return made.raw
    if flags & _OTHER_COMPRESSION:
        raise ValueError("PTX is compressed in a way that is not known here: compile it with nvcc --no-compress")
    return body


@functools.cache
def _zstandard() -> ctypes.CDLL:
    name = ctypes.util.find_library("zstd")
    if name is None:
        raise OSError("libzstd, which unpacks the PTX in libraries, is not here: install it (Debian: libzstd1)")
    library = ctypes.CDLL(name)
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    return library
