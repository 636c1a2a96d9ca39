# SPDX-License-Identifier: Apache-2.0
"""By what an embedding is known before it is made, and who holds those that were made. Pure."""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from blake3 import blake3
from msgspec import Struct

from vllm_epd.router import fields
from vllm_epd.router.embeddings import Lease
from vllm_epd.router.fields import Dest
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem, InlineData
from vllm_epd.router.requests import ClientRequest
from vllm_epd.types import Fingerprint


def circumstances(request: ClientRequest, group: Fingerprint) -> bytes:
    """What the embeddings of a request depend on besides their data: model, salt, options and instances."""
    options = fields.select(request.api.rules, request.body, Dest.ALL, Dest.MEDIA)
    return _canonical(options) + _of_group(group)


def digesting(data: InlineData, circumstances: bytes) -> blake3:
    """What gives the name of the embedding of some data, once the text of the data has been fed to it."""
    return blake3(circumstances + _canonical([data.kind, data.options]))


class Known(Struct, frozen=True, eq=False):
    """An embedding that was made and may be there still.

    Attributes:
        item: what was said of it; the handle is that of the request for which it was made.
        lease: what that handle says.
        holder: the instance that made it.
    """

    item: EncodedItem
    lease: Lease
    holder: Instance


class Directory:
    """The embeddings that were made last, by digest; those asked for least lately make way for new ones."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[str, Known] = OrderedDict()

    def find(self, digest: str, present: Callable[[Instance], bool]) -> Known | None:
        """Who holds an embedding; one whose holder is not `present` is forgotten."""
        known = self._known.get(digest)
        if known is None:
            return None
        if not present(known.holder):
            del self._known[digest]
            return None
        self._known.move_to_end(digest)
        return known

    def put(self, digest: str, known: Known) -> None:
        """Note a new embedding."""
        self._known[digest] = known
        self._known.move_to_end(digest)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def forget(self, digest: str, known: Known) -> None:
        """Drop what turned out not to be held any more, unless it has been made anew since."""
        if self._known.get(digest) is known:
            del self._known[digest]


@lru_cache
def _of_group(group: Fingerprint) -> bytes:
    return _canonical(group.to_mapping())


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
