# SPDX-License-Identifier: Apache-2.0
"""What a simulation, or a real run, comes to. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """One request's times, in seconds from the start of the workload.

    Attributes:
        number: of the request.
        arrived: when it came.
        first_token: when its first token was there.
        done: when its last token was there.
        output_tokens: that it got.
        encoder: name of the last instance that encoded for it; None for text.
        prefill: name of the instance that prefilled it.
        decode: name of the instance that generated for it.
    """

    number: int
    arrived: float
    first_token: float
    done: float
    output_tokens: int
    encoder: str | None
    prefill: str
    decode: str

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token - self.arrived

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 where there is none."""
        return (self.done - self.first_token) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that the fleet cannot take at all.

    Attributes:
        number: of the request.
        why: a sentence.
    """

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Use:
    """What one instance was used for.

    Attributes:
        name: such as `E0`.
        busy_s: seconds in which its device worked.
        by_stage: the same by stage (names of `types.Role`), and `preprocess`.
        peak_kv_tokens: most tokens in its KV cache.
        kv_tokens: that it has room for.
        peak_embedding_tokens: most tokens of embeddings in its pool.
        embedding_tokens: that it has room for.
    """

    name: str
    busy_s: float
    by_stage: dict[str, float]
    peak_kv_tokens: int
    kv_tokens: int
    peak_embedding_tokens: int
    embedding_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run.

    Attributes:
        served: requests that got all their tokens, by number.
        refused: those that no instance could ever take.
        uses: instances, in the order of the topology.
        end: when the last request was done.
    """

    served: Sequence[Served]
    refused: Sequence[Refused]
    uses: Sequence[Use]
    end: float
