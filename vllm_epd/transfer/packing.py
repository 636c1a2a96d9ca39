# SPDX-License-Identifier: Apache-2.0
"""In which form an embedding goes into the pool: as it is or encoded, and what is found out about it on the way."""

import logging
from dataclasses import dataclass

import torch

from vllm_epd.errors import PoolError
from vllm_epd.transfer.codec import CODECS, NONE, decode, encode, encoded_bytes, item_bytes, row_errors, scales_of
from vllm_epd.transfer.codec_guard import CodecGuard, CodecState
from vllm_epd.transfer.items import Tried

logger = logging.getLogger(__name__)

CHECKS = ("none", "finite", "checksum", "all")


@dataclass(frozen=True, slots=True)
class Packing:
    """How one instance sends its embeddings.

    Attributes:
        codec: one of `CODECS`.
        check: one of `CHECKS`: whether items that are not finite are refused, whether items have a checksum, or both.
        row_bytes: size of a row as the encoder makes it; 0 where nothing is encoded here.
        number_bytes: size of one of its numbers.
    """

    codec: str = NONE
    check: str = "none"
    row_bytes: int = 0
    number_bytes: int = 1

    def __post_init__(self) -> None:
        assert self.codec in CODECS, f"{self.codec!r} is none of {CODECS}"
        assert self.check in CHECKS, f"{self.check!r} is none of {CHECKS}"

    @property
    def finite(self) -> bool:
        """Whether what is not finite is refused: it is under a codec, which cannot carry it."""
        return self.codec != NONE or self.check in ("finite", "all")

    @property
    def checksum(self) -> bool:
        """Whether what is granted has a checksum."""
        return self.check in ("checksum", "all")

    def encoded(self, nbytes: int) -> int:
        """Size of an item of `nbytes` under the codec; `nbytes` itself where that saves nothing."""
        if self.codec == NONE or not self.row_bytes or nbytes % self.row_bytes:
            return nbytes
        rows = nbytes // self.row_bytes
        return min(nbytes, encoded_bytes(rows, self.row_bytes // self.number_bytes, self.codec))


@dataclass(frozen=True, slots=True)
class Packed:
    """An item as it goes into the pool.

    Attributes:
        flat: its bytes, uint8 [nbytes].
        codec: that they are encoded with.
        finite: on the host, but set only once the device has come so far; None where nobody asks.
        tried: the same, where it is encoded without a verdict on the codec.
    """

    flat: torch.Tensor
    codec: str
    finite: torch.Tensor | None
    tried: Tried | None = None


class Packer:
    """Packs items, and measures the codec on the first of them. Nothing here waits for a device.

    `pack` and `measure` change nothing; the owner calls the others under its lock.
    """

    def __init__(self, packing: Packing, guard: CodecGuard | None = None) -> None:
        self.packing = packing
        self.guard = guard or CodecGuard(enabled=packing.codec != NONE)
        self._measured: list[tuple[torch.Tensor, torch.Event | None]] = []

    def room(self, nbytes: int) -> int:
        """What to reserve for an item that has `nbytes` as the encoder makes it."""
        self._settle()
        return self.packing.encoded(nbytes) if self.guard.state is CodecState.ACTIVE else nbytes

    def least_room(self, nbytes: int) -> int:
        """What to reserve for an item that has no room otherwise; `nbytes` itself once the codec is refused."""
        return nbytes if self.guard.state is CodecState.REFUSED else self.packing.encoded(nbytes)

    def pack(self, tensor: torch.Tensor, nbytes: int) -> Packed:
        """`tensor` in the form that has `nbytes`; where that is encoded without a verdict, with what it does to it.

        Raises:
            PoolError: it has no such form.
        """
        if nbytes == tensor.nbytes:
            finite = _on_host(tensor.isfinite().all()) if self.packing.finite else None
            return Packed(tensor.contiguous().view(-1).view(torch.uint8), NONE, finite)
        codec = self.packing.codec
        if codec == NONE or nbytes != item_bytes(tensor.shape, tensor.dtype, codec):
            raise PoolError(f"{nbytes} bytes were announced for an embedding of {tensor.nbytes} bytes")
        flat = encode(tensor, codec)
        finite = _on_host(scales_of(flat, tensor.shape).isfinite().all())
        if self.guard.state is CodecState.ACTIVE:
            return Packed(flat, codec, finite)
        return Packed(flat, codec, finite, Tried(self._error(tensor, flat), self.guard.bound))

    def measure(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The error of the codec in the worst row of `tensor`, on the host once the device has come so far.

        None when the codec is not on trial, or does not take such a tensor.
        """
        codec = self.packing.codec
        if self.guard.state is not CodecState.TRIAL or not tensor.numel():
            return None
        if item_bytes(tensor.shape, tensor.dtype, codec) is None:
            return None
        return self._error(tensor, encode(tensor, codec))

    def note(self, measured: torch.Tensor | None, done: torch.Event | None) -> None:
        """Take in a measurement, which is there after `done`."""
        if measured is not None:
            self._measured.append((measured, done))
            self._settle()

    def _error(self, tensor: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        decoded = decode(encoded, tensor.shape, tensor.dtype, self.packing.codec)
        return _on_host(row_errors(tensor, decoded).amax())

    def _settle(self) -> None:
        """Let the guard judge by what has been measured."""
        while self._measured and (self._measured[0][1] is None or self._measured[0][1].query()):
            before = self.guard.state
            self.guard.observe(float(self._measured.pop(0)[0]))
            if self.guard.state is not before:
                self._announce()

    def _announce(self) -> None:
        codec, worst, bound = self.packing.codec, self.guard.worst, self.guard.bound
        if self.guard.state is CodecState.REFUSED:
            logger.error(
                "--epd-embedding-codec %s is refused: it changes a row of an embedding by %.4f of its norm, more than"
                " %.4f; embeddings are sent as they are",
                codec,
                worst,
                bound,
            )
        else:
            logger.info("embeddings are sent as %s, which changed rows by at most %.4f of their norm", codec, worst)


def _on_host(value: torch.Tensor) -> torch.Tensor:
    """`value` on its way to the host: there after whatever event the caller records next."""
    if not value.is_cuda:
        return value
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
