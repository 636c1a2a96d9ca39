# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's run-time compiler, out of its wheel; it needs no device."""

import ctypes
from collections.abc import Sequence
from importlib import metadata

PACKAGE = "nvidia-cuda-nvrtc"


def is_installed() -> bool:
    """Whether the wheel is there."""
    try:
        return bool(metadata.files(PACKAGE))
    except metadata.PackageNotFoundError:
        return False


def compile_to_cubin(source: str, options: Sequence[str]) -> bytes:
    """The machine code of a CUDA source.

    Raises:
        RuntimeError: it does not compile; says why.
    """
    library = _library()
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None))
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    _check(library, status, _fetch(library, "ProgramLog", program).rstrip(b"\0").decode())
    return _fetch(library, "CUBIN", program)


def _library() -> ctypes.CDLL:
    (path,) = [file.locate() for file in metadata.files(PACKAGE) or () if file.name.startswith("libnvrtc.so")]
    return ctypes.CDLL(str(path))


def _fetch(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, content))
    return content.raw


def _check(library: ctypes.CDLL, status: int, why: str = "") -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"{library.nvrtcGetErrorString(status).decode()}: {why}")
