# SPDX-License-Identifier: Apache-2.0
"""Items that the workers of one engine keep in parts, each with an agent of its own. Pure."""

from dataclasses import dataclass

from vllm_epd.errors import PeerError


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of every item an agent has; by default all of it.

    Attributes:
        index: of the part: the tensor-parallel rank of the worker.
        count: how many parts there are: the tensor-parallel size of the engine.
    """

    index: int = 0
    count: int = 1

    def agent(self, rank: int) -> int:
        """Which of an instance's agents has this part at data-parallel rank `rank`."""
        return rank * self.count + self.index

    def check_reader(self, theirs: "Shard") -> None:
        """Refuse a consumer that would take this part for another one.

        Raises:
            PeerError: it keeps its items in more or fewer parts, or wants another one.
        """
        if theirs.count != self.count:
            raise PeerError(
                f"the consumer has tensor-parallel size {theirs.count}, the producer {self.count};"
                " give both the same, or use --epd-kv-connector nixl on prefill and decode"
            )
        if theirs != self:
            raise PeerError(f"the consumer wants part {theirs.index} of {self.count}, here is part {self.index}")
