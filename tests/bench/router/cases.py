# SPDX-License-Identifier: Apache-2.0
"""What is asked of the router, by whom it is served, and what it stands beside."""

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KB, MB = 10**3, 10**6

DIRECT = "direct"
PROXY = "proxy"
HOPS = "proxy, as many hops"
ROUTER = "router"
FRONTS: tuple[str, ...] = (DIRECT, PROXY, HOPS, ROUTER)
"""Who is asked: a stub itself, a proxy that asks it once or as often as the router asks instances, or the router."""

STREAM_TOKENS = 256
NIXL, EPD = "nixl", "epd"
"""KV connectors; over our own one the router makes calls of its own, and P's token opens the answer."""

_UNIQUE = 24
#: Signature and header of a PNG of 1000 x 1000 pixels, by which the router estimates what it costs.
_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 1000, 1000, 8, 2, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Case:
    """Requests of one kind.

    Attributes:
        kv: KV connector of P and D.
        image: bytes of its image before base64, 0 for none.
        stream: the answer is a stream of `STREAM_TOKENS` events.
        alone: requests sent one after the other to each front, for latency.
        loaded: requests sent to each front, `concurrency` at once, for processor time.
    """

    name: str
    alone: int
    loaded: int
    kv: str = NIXL
    image: int = 0
    stream: bool = False
    concurrency: int = 8
    targets: bool = True

    @property
    def hops(self) -> int:
        """Calls that the router makes to instances to have tokens generated."""
        return 3 if self.image else 2


CASES = (
    Case("text 1 KB", alone=400, loaded=2000),
    Case("image 100 KB", alone=300, loaded=1000, image=100 * KB),
    Case("image 4 MB", alone=100, loaded=160, image=4 * MB),
    Case("stream of 256", alone=100, loaded=200, stream=True),
    Case("text 1 KB, epd", alone=300, loaded=1500, kv=EPD, targets=False),
    Case("image 100 KB, epd", alone=200, loaded=600, kv=EPD, image=100 * KB, targets=False),
    Case("stream of 256, epd", alone=100, loaded=200, kv=EPD, stream=True, targets=False),
)


class Bodies:
    """Bodies of one case, each with other media than any before, without building them anew."""

    def __init__(self, case: Case) -> None:
        random = Random(case.name)
        unique = "?" * _UNIQUE
        content: list[dict[str, object]] = []
        if case.image:
            data = base64.b64encode(_PNG).decode() + unique + base64.b64encode(random.randbytes(case.image)).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        content.append({"type": "text", "text": "".join(random.choices("abcdefgh ", k=KB // 2 if case.image else KB))})
        body = {"model": case.kv, "messages": [{"role": "user", "content": content}], "max_tokens": STREAM_TOKENS}
        written = json.dumps({**body, "temperature": 0, "stream": case.stream}).encode()
        self._before, self._unique, self._after = written.partition(unique.encode())
        self._made = 0
        self.nbytes = len(written)

    def next(self) -> Sequence[bytes]:
        """The pieces of one more body."""
        self._made += 1
        return (self._before, f"{self._made:0{_UNIQUE}}".encode() if self._unique else b"", self._after)
