# SPDX-License-Identifier: Apache-2.0
"""The command: what was asked, the examination, the table."""

import logging
import os
import socket
import threading
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_epd.doctor.examine import (
    SIZES,
    Diagnosis,
    Finding,
    Wanted,
    default_device,
    examine_machine,
    examine_peer,
)
from vllm_epd.doctor.producer import Offer, describe_sizes, start_producer
from vllm_epd.errors import ConfigError, TransferError
from vllm_epd.transfer.tiers import AUTO, DEVICE_TIERS, HOST_TIERS
from vllm_epd.types import TOKEN_ENV

DEFAULT_PORT = 8790
EVERYWHERE = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Place:
    """A host and a port, as given by the user."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read HOST or HOST:PORT.

        Raises:
            ConfigError: it is neither.
        """
        host, colon, port = text.partition(":")
        if not host or (colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16)):
            raise ConfigError(f"{text!r} is not HOST or HOST:PORT")
        return cls(host, int(port) if colon else DEFAULT_PORT)

    @property
    def address(self) -> str:
        """As ZeroMQ writes it."""
        return f"tcp://{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def doctor(wanted: Wanted, listen: str | None, peer: str | None, console: Console) -> int:
    """Examine this machine, or the way to a peer, or be that peer until interrupted.

    Returns:
        The exit code: 0 if what an instance chooses by default works, 1 if not.

    Raises:
        ConfigError: an address or a transport that is none.
    """
    # What a tier lacks is in the table.
    logging.getLogger("vllm_epd").setLevel(logging.ERROR)
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    known = sorted({AUTO, *HOST_TIERS, *DEVICE_TIERS})
    if wanted.transport not in known:
        raise ConfigError(f"unknown transport {wanted.transport!r}; known: {', '.join(known)}")
    if listen is not None:
        return _listen(Place.parse(listen), wanted, console)
    if peer is not None:
        place = Place.parse(peer)
        diagnosis, title = examine_peer(place.address, wanted), f"From {place} to this machine"
    else:
        diagnosis, title = examine_machine(wanted), "Between two instances of this machine"
    console.print(_table(title, diagnosis))
    if not diagnosis.choice.works:
        console.print(f"an instance left to choose cannot fetch: {diagnosis.choice.problem}", markup=False)
    return 0 if diagnosis.choice.works else 1


def _listen(place: Place, wanted: Wanted, console: Console) -> int:
    try:
        agent = start_producer(Offer(place.address, SIZES, default_device(), wanted.transport, wanted.backend))
    except TransferError as error:
        console.print(f"vllm-epd doctor: {error}", markup=False, soft_wrap=True)
        return 1
    host = socket.gethostname() if place.host == EVERYWHERE else place.host
    console.print(f"offering {describe_sizes(SIZES)} until Ctrl-C; on the other host run:", soft_wrap=True)
    prefix = f"{TOKEN_ENV}=... " if os.environ.get(TOKEN_ENV) else ""
    command = f"  {prefix}vllm-epd doctor --peer {Place(host, place.port)}"
    console.print(command, markup=False, highlight=False, soft_wrap=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    finally:
        agent.close()
    return 0


def _table(title: str, diagnosis: Diagnosis) -> Table:
    small, large = (describe_sizes([nbytes]) for nbytes in SIZES)
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in ("tier", "pools in", "works", "by default", f"{small} p50", f"{large}", "bytes"):
        table.add_column(name, overflow="fold")
    for finding in diagnosis.tiers:
        table.add_row(*map(Text, _cells(finding, is_default=finding is diagnosis.chosen)))
    return table


def _cells(finding: Finding, *, is_default: bool) -> list[str]:
    memory = "host memory" if finding.device == "cpu" else "device memory"
    cells = [finding.tier, memory, "yes" if finding.works else f"no: {finding.problem}", "yes" if is_default else ""]
    if finding.works:
        cells += [f"{finding.latency_s * 1e6:.0f} us", f"{finding.bytes_per_s / 1e9:.2f} GB/s", "ok"]
    return cells
