# SPDX-License-Identifier: Apache-2.0
"""Every codec on one model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import torch

from tests.bench.codec.answers import Answer, ask, force, forced_differences
from tests.bench.codec.cases import question, questions, trial_images
from tests.bench.codec.embeddings import Reader, compare, encode, open_reader
from tests.bench.codec.fleet import Fleet, running_fleet
from tests.bench.codec.results import Codec, Distance, Embeddings
from tests.bench.errors import BenchError
from tests.bench.processes import Place
from tests.engine.gauges import pool
from tests.engine.own_router import described
from tests.engine.stages import with_items
from tests.engine.traffic import Json, images_of
from vllm_epd.transfer.codec import CODECS, NONE


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A question, what the single server says to it, and what it says of its own answer as part of the prompt."""

    question: Json
    answer: Answer
    forced: list[float]


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one codec is measured on; requests with another salt share nothing with those of this one."""

    fleet: Fleet
    codec: str
    salt: str

    @property
    def encoder(self) -> str:
        return self.fleet.encoders[self.codec]


async def measure_codecs(family: str, place: Place, say: Callable[[str], None]) -> list[Codec]:
    """Start all that is needed for one model, and measure one codec after the other."""
    say(f"codecs, {family}: starting")
    async with running_fleet(family, place) as fleet:
        say(f"codecs, {family}: measuring")
        wanted = [await _wanted(fleet.single, each) for each in questions()]
        with open_reader([await described(url) for url in fleet.encoders.values()]) as reader:
            salt = uuid4().hex
            trial = await reader.fetch_all(fleet.encoders[NONE], trial_images(), salt)
            exact = await reader.fetch_all(fleet.encoders[NONE], _images(wanted), salt)
            found = []
            for codec in CODECS:
                # Instances and reader keep what they have by its content: without a salt, from another codec.
                stage = _Stage(fleet, codec, f"{codec}-{salt}")
                await _try_out(stage, reader, trial)
                embeddings = compare(exact, await reader.fetch_all(stage.encoder, _images(wanted), stage.salt))
                found.append(await _measure(family, stage, wanted, embeddings))
            return found


async def _wanted(single: str, asked: Json) -> _Wanted:
    answer = await ask(single, asked)
    return _Wanted(asked, answer, await force(single, asked, answer))


async def _try_out(stage: _Stage, reader: Reader, exact: Sequence[torch.Tensor]) -> None:
    """Have the guard measure the codec; meanwhile embeddings go as they are, which shows that all encoders agree."""
    found = await reader.fetch_all(stage.encoder, trial_images(), stage.salt)
    if not all(torch.equal(one, other) for one, other in zip(exact, found, strict=True)):
        raise BenchError(f"the encode instance of {stage.codec} makes other embeddings than that of {NONE}")


async def _measure(family: str, stage: _Stage, wanted: Sequence[_Wanted], embeddings: Embeddings) -> Codec:
    """The answers, and what they made the prefill instance fetch."""
    before = await pool(stage.fleet.prefill)
    async with stage.fleet.router(stage.codec) as router:
        found = [await ask(router, {**each.question, "cache_salt": stage.salt}) for each in wanted]
    after, guard = await pool(stage.fleet.prefill), await pool(stage.encoder)
    if (fetched := after["fetched"] - before["fetched"]) != embeddings.items:
        raise BenchError(f"{fetched} embeddings were fetched, {embeddings.items} expected")
    pairs = [(each.answer, answer) for each, answer in zip(wanted, found, strict=True)]
    forced = [difference for each in wanted for difference in await _forced(stage, each)]
    return Codec(
        model=family,
        codec=stage.codec,
        state=guard["codec_state"],
        guard_error=guard["codec_error"],
        item_bytes=(after["fetched_bytes"] - before["fetched_bytes"]) / fetched,
        embeddings=embeddings,
        forced=Distance.of(forced),
        greedy=Distance.of([difference for want, answer in pairs for difference in want.differences(answer)]),
        answers=len(pairs),
        same=sum(want.same_tokens(answer) for want, answer in pairs),
    )


async def _forced(stage: _Stage, wanted: _Wanted) -> list[float]:
    """By encode and prefill: a router takes no request for the log probabilities of a prompt."""
    images = images_of(wanted.question)
    items = [await encode(stage.encoder, image, stage.salt) for image in images]
    text = [part for part in wanted.question["messages"][0]["content"] if part not in images]
    request = with_items({**question(text), "cache_salt": stage.salt}, items)
    return forced_differences(wanted.forced, await force(stage.fleet.prefill, request, wanted.answer))


def _images(wanted: Sequence[_Wanted]) -> list[Json]:
    return [image for each in wanted for image in images_of(each.question)]
