# SPDX-License-Identifier: Apache-2.0
"""What was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.bench.cases import Case
from tests.bench.client import Answer
from tests.bench.codec.results import Codec
from tests.bench.cpu import Used
from tests.bench.handover.results import Handover
from tests.bench.router.cases import Case as RouterCase
from tests.bench.router.results import Passed
from tests.bench.summary import Summary
from tests.bench.transfer.results import Transfer


@dataclass(frozen=True, slots=True)
class Result:
    """One case on one system.

    Attributes:
        answers: in order of the requests.
        wall_s: from the first request to the last answer.
        cpu: processor time per request, by server.
        stage_s: seconds that a request spent in each stage, on average.
    """

    system: str
    case: Case
    answers: tuple[Answer, ...]
    wall_s: float
    cpu: Mapping[str, Used]
    stage_s: Mapping[str, float]

    @property
    def ttft(self) -> Summary:
        return Summary.of([answer.ttft_s for answer in self.answers])

    @property
    def total(self) -> Summary:
        return Summary.of([answer.total_s for answer in self.answers])

    @property
    def wall_per_request_s(self) -> float:
        return self.wall_s / len(self.answers)

    @property
    def rest_s(self) -> float:
        """What of a request's time, on average, is spent in no stage."""
        return self.total.mean - sum(self.stage_s.values())

    def same_answers(self, other: "Result") -> int:
        """How many of the requests that both served have the same text for an answer."""
        return sum(mine.text == theirs.text for mine, theirs in zip(self.answers, other.answers, strict=False))


@dataclass(slots=True)
class Results:
    """What was measured so far: requests to systems, hand-overs of KV caches, transfers, codecs, and the router."""

    all: list[Result] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    codecs: list[Codec] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.all.append(result)

    def find(self, system: str, case: Case) -> Result | None:
        return next((each for each in self.all if (each.system, each.case) == (system, case)), None)

    def pairs(self, system: str, other: str) -> Iterator[tuple[Result, Result]]:
        """The results of two systems, for each case that both have."""
        for mine in (each for each in self.all if each.system == system):
            if theirs := self.find(other, mine.case):
                yield mine, theirs

    def handover(self, way: str, tokens: int) -> Handover | None:
        return next((each for each in self.handovers if (each.way, each.tokens) == (way, tokens)), None)

    def codec(self, model: str, codec: str) -> Codec | None:
        return next((each for each in self.codecs if (each.model, each.codec) == (model, codec)), None)

    def transfer(self, variant: str, nbytes: int) -> Transfer | None:
        return next((each for each in self.transfers if (each.variant, each.nbytes) == (variant, nbytes)), None)

    def passing(self, front: str, case: RouterCase) -> Passed | None:
        return next((each for each in self.passed if (each.front, each.case) == (front, case)), None)
