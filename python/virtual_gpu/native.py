"""The machine's library as ctypes sees it."""

import ctypes
import functools

from virtual_gpu import build

_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_U32, _U64, _I64 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "vgpu_unknown": (_I64, [_POINTER, _I64]),
    "vgpu_program": (
        _POINTER,
        [_POINTER, _I64, _POINTER, _I64, _POINTER, _TEXT, _I64, _POINTER, _I64, _U32, _U32, _U32, _U32],
    ),
    "vgpu_free_program": (None, [_POINTER]),
    "vgpu_machine": (_POINTER, [_U32, _U32, _INT, _INT]),
    "vgpu_free_machine": (None, [_POINTER]),
    "vgpu_register": (None, [_POINTER, _U64, _U64, _TEXT, _INT, _INT]),
    "vgpu_forget": (None, [_POINTER, _U64]),
    "vgpu_wrote": (None, [_POINTER, _U64, _U64]),
    "vgpu_initialised": (_INT, [_POINTER, _U64, _U64]),
    "vgpu_launch": (_INT, [_POINTER, _POINTER, _POINTER, _U32, _TEXT, _U32, _INT, _U64, _U64]),
    "vgpu_counters": (None, [_POINTER, _POINTER]),
    "vgpu_profile": (None, [_POINTER, _POINTER]),
    "vgpu_trace_length": (_I64, [_POINTER]),
    "vgpu_trace": (None, [_POINTER, _POINTER]),
    "vgpu_report_count": (_I64, [_POINTER]),
    "vgpu_report": (_TEXT, [_POINTER, _I64, _POINTER, _POINTER, _POINTER, _POINTER]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library, built if it needs to be, with its functions' types."""
    loaded = ctypes.CDLL(str(build.library()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
