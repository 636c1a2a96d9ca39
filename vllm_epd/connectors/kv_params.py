# SPDX-License-Identifier: Apache-2.0
"""What router and instances tell each other about the KV cache of a request: the key `epd` of `kv_transfer_params`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from vllm_epd.errors import TransferError

KEY = "epd"


class _Remote(msgspec.Struct, frozen=True):
    transfer: str
    epoch: str
    rank: int
    tokens: int


@dataclass(frozen=True, slots=True)
class RemoteKV:
    """Where the KV cache of a prompt can be had.

    Attributes:
        transfer: names this hand-over.
        epoch: of the agents that offer it.
        rank: data-parallel rank of the producer.
        tokens: of the prompt, at its beginning; what follows has no KV cache yet.
    """

    transfer: str
    epoch: str
    rank: int
    tokens: int

    @classmethod
    def read(cls, params: Mapping[str, Any] | None) -> Self | None:
        """Read it out of a request's `kv_transfer_params`; None where nothing is to be had.

        Raises:
            TransferError: it makes no sense.
        """
        entry = (params or {}).get(KEY)
        if not isinstance(entry, Mapping) or "transfer" not in entry:
            return None
        try:
            remote = msgspec.convert(entry, _Remote)
        except msgspec.ValidationError as error:
            raise TransferError(f"bad KV handle: {error}") from error
        if remote.rank < 0 or remote.tokens <= 0:
            raise TransferError(f"bad KV handle: rank {remote.rank}, {remote.tokens} tokens")
        return cls(remote.transfer, remote.epoch, remote.rank, remote.tokens)

    def answer(self, first: int | None) -> dict[str, Any]:
        """As `kv_transfer_params` of P's answer, with the token that P has sampled."""
        remote = {"transfer": self.transfer, "epoch": self.epoch, "rank": self.rank, "tokens": self.tokens}
        return {KEY: {**remote, "first": first}}


def offered(params: Mapping[str, Any] | None) -> str | None:
    """Under which name the router wants the KV cache offered; None where it does not."""
    entry = (params or {}).get(KEY)
    name = entry.get("offer") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) and name else None
