# SPDX-License-Identifier: Apache-2.0
"""Memory that is there before it is used.

The kernel finds a page, and clears it, when it is touched for the first time: 3 to 13 us for 4 KiB, in the middle of an
engine step that copies into it. To have all of a large pool from the start would cost seconds, and memory that may
never be used, so a thread of its own keeps some way ahead of what is in use.
"""

import ctypes
import errno
import logging
import threading

logger = logging.getLogger(__name__)

AHEAD_BYTES = 32 * 2**20
"""How far ahead: more than the items of one request take, and little beside what an instance has anyway."""

_STEP_BYTES = 2 * 2**20
_POPULATE_WRITE = 23
"""Of `madvise`, since Linux 5.14; Python does not name it."""


class Warmer:
    """Keeps `AHEAD_BYTES` of a mapping ready beyond what `reach` names, until `close`. Used from any thread."""

    def __init__(self, address: int, nbytes: int) -> None:
        """For the mapping of `nbytes` at `address`, which stays until `close`."""
        self._address = address
        self._nbytes = nbytes
        self._ready = 0
        self._wanted = min(AHEAD_BYTES, nbytes)
        self._closed = False
        self._changed = threading.Event()
        self._changed.set()
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise  # releases the GIL, which `mmap.madvise` keeps
        self._thread = threading.Thread(target=self._run, name="epd-warm", daemon=True)
        self._thread.start()

    def reach(self, end: int) -> None:
        """Bytes up to `end` are in use or about to be."""
        wanted = min(end + AHEAD_BYTES, self._nbytes)
        if wanted > self._wanted:
            self._wanted = wanted
            self._changed.set()

    def close(self) -> None:
        """Touch nothing more; the mapping may go."""
        self._closed = True
        self._changed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed and self._ready < self._nbytes:
            self._changed.wait()
            self._changed.clear()
            while not self._closed and self._ready < self._wanted:
                if not self._step(min(_STEP_BYTES, self._nbytes - self._ready)):
                    return

    def _step(self, nbytes: int) -> bool:
        at = ctypes.c_void_p(self._address + self._ready)
        if self._madvise(at, ctypes.c_size_t(nbytes), _POPULATE_WRITE) != 0:
            reason = errno.errorcode.get(ctypes.get_errno(), "unknown")
            logger.info("memory of a pool is not made ready ahead of its use: %s", reason)
            return False
        self._ready += nbytes
        return True
