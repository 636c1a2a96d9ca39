# SPDX-License-Identifier: Apache-2.0
"""Transport between processes of one host, in device memory: CUDA IPC through CuPy.

The region is an allocation of its own, not a piece of a caching allocator's: only such memory can be shared whole and
freed by itself. A read is a copy on a stream of its own; peer access between GPUs makes it one over NVLink where there
is one.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
import torch

from vllm_epd.errors import PeerError, TransferError
from vllm_epd.transfer.base import Peer, Read, Transport, check_bounds, pair_spans
from vllm_epd.transfer.pool import Span
from vllm_epd.transfer.region import Region

T = TypeVar("T")

DEVICE_TO_DEVICE = 3
"""`cudaMemcpyDeviceToDevice`."""

SUCCESS, NOT_READY = 0, 600
"""`cudaSuccess` and `cudaErrorNotReady`."""

HANDLE_BYTES = 64
"""`CUDA_IPC_HANDLE_SIZE`."""


class _Description(msgspec.Struct, frozen=True):
    handle: bytes
    nbytes: int
    boot: str


class CudaIpcPeer(Peer):
    """Another process's allocation, opened in this one."""

    def __init__(self, cuda: Any, device: int, address: int, nbytes: int) -> None:
        self._cuda = cuda
        self._device = device
        self.address = address
        self.nbytes = nbytes

    def close(self) -> None:
        if self.address:
            address, self.address = self.address, 0
            with self._cuda.Device(self._device):
                _guard("close a peer's memory", lambda: self._cuda.runtime.ipcCloseMemHandle(address))


class CudaIpcRead(Read):
    """Copies on a stream, and the event that ends them."""

    def __init__(self, cuda: Any, event: Any) -> None:
        self._cuda = cuda
        self._event = event

    def poll(self) -> bool:
        # Not `Event.done`, to which a copy that failed is one that goes on.
        status = _guard("copy from a peer", lambda: self._cuda.runtime.eventQuery(self._event.ptr))
        if status not in (SUCCESS, NOT_READY):
            raise TransferError(f"a copy from a peer ended with CUDA error {status}")
        return bool(status == SUCCESS)

    def close(self) -> None:
        if self._event is not None:
            event, self._event = self._event, None
            _guard("end a copy from a peer", event.synchronize)


class CudaIpcTransport(Transport):
    """Copies out of device memory that other processes of this host own.

    Raises:
        TransferError: there is no CuPy or no CUDA device.
    """

    name: ClassVar[str] = "cuda_ipc"

    def __init__(self) -> None:
        self._cuda = _cuda()
        self._region: Region | None = None
        self._stream: Any = None
        self._closed = False

    def register(self, region: Region) -> None:
        if self._region is not None or self._closed:
            raise TransferError("a CudaIpcTransport registers one region, once")
        if not region.on_device:
            raise TransferError("cuda_ipc needs a region in device memory")
        self._handle = bytes(self._on_device(region, "share memory", lambda: self._get_handle(region)))
        self._stream = self._on_device(region, "make a stream", lambda: self._cuda.Stream(non_blocking=True))
        self._region = region

    def describe(self) -> bytes:
        return msgspec.msgpack.encode(_Description(self._handle, self._own_region().nbytes, _boot_id()))

    def connect(self, description: bytes) -> Peer:
        own = self._own_region()
        try:
            remote = msgspec.msgpack.decode(description, type=_Description)
        except msgspec.DecodeError as error:
            raise PeerError(f"the peer's CUDA IPC description does not decode: {error}") from error
        if remote.boot != _boot_id():
            raise PeerError("the peer is on another host")
        if len(remote.handle) != HANDLE_BYTES or remote.nbytes <= 0:
            raise PeerError(f"a handle of {len(remote.handle)} bytes for {remote.nbytes} bytes of the peer's memory")
        try:
            address = self._on_device(
                own, "open a peer's memory", lambda: self._cuda.runtime.ipcOpenMemHandle(remote.handle)
            )
        except TransferError as error:
            raise PeerError(str(error)) from error
        return CudaIpcPeer(self._cuda, own.device_index, int(address), remote.nbytes)

    def read(self, peer: Peer, remote: Sequence[Span], local: Sequence[Span]) -> Read:
        if not isinstance(peer, CudaIpcPeer):
            raise TransferError(f"a CudaIpcTransport reads from its own peers, not from {type(peer).__name__}")
        if not peer.address:
            raise TransferError("the peer is closed")
        own = self._own_region()
        check_bounds(remote, peer.nbytes)
        check_bounds(local, own.nbytes)
        pairs = pair_spans(remote, local)
        try:
            return CudaIpcRead(self._cuda, self._on_device(own, "start a copy", lambda: self._copy(own, peer, pairs)))
        except TransferError:
            # Those that did start must not land in pages that are about to be another's.
            self._on_device(own, "end copies from a peer", self._stream.synchronize)
            raise

    def close(self) -> None:
        self._closed = True
        self._region = None
        self._stream = None

    def _get_handle(self, region: Region) -> Any:
        return self._cuda.runtime.ipcGetMemHandle(region.tensor.data_ptr())

    def _copy(self, own: Region, peer: CudaIpcPeer, pairs: Sequence[tuple[Span, Span]]) -> Any:
        target = own.tensor.data_ptr()
        for there, here in pairs:
            self._cuda.runtime.memcpyAsync(
                target + here.offset, peer.address + there.offset, there.length, DEVICE_TO_DEVICE, self._stream.ptr
            )
        event = self._cuda.Event(disable_timing=True)
        event.record(self._stream)
        return event

    def _on_device(self, region: Region, what: str, call: Callable[[], T]) -> T:
        with self._cuda.Device(region.device_index):
            return _guard(what, call)

    def _own_region(self) -> Region:
        if self._region is None:
            raise TransferError("register a region first")
        return self._region


def device_region(nbytes: int, device: torch.device) -> Region:
    """Device memory that other processes of this host can open.

    Raises:
        TransferError: there is no CuPy, no CUDA device, or not so much memory.
    """
    cuda = _cuda()
    index = device.index if device.index is not None else torch.cuda.current_device()
    with cuda.Device(index):
        address = _guard(f"allocate {nbytes} bytes on cuda:{index}", lambda: int(cuda.runtime.malloc(nbytes)))
    tensor = torch.as_tensor(_Allocation(address, nbytes), device=torch.device("cuda", index))

    def free() -> None:
        with cuda.Device(index):
            cuda.runtime.free(address)

    return Region(tensor, None, free)


class _Allocation:
    """Device memory as torch and others take it in: the CUDA array interface."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _cuda() -> Any:
    try:
        from cupy import cuda
    except ImportError as error:
        raise TransferError(f"cuda_ipc needs CuPy ({error}); install vllm-epd with its gpu extra") from error
    if not _guard("look for devices", cuda.runtime.getDeviceCount):
        raise TransferError("cuda_ipc needs a CUDA device")
    return cuda


def _boot_id() -> str:
    """Names this host as long as it runs."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError as error:
        raise TransferError(f"this host has no boot id: {error}") from error


def _guard(what: str, call: Callable[[], T]) -> T:
    """Run a CUDA call; CuPy's errors become TransferErrors."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  CuPy's errors share no base class that is there without a GPU
        raise TransferError(f"CUDA could not {what}: {type(error).__name__}: {error}") from error
