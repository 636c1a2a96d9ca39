# SPDX-License-Identifier: Apache-2.0
"""One seeded trace of mixed requests: text and up to eight images of different sizes, steady traffic and bursts."""

import base64
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SEED = 20250
REQUESTS = 300
RATE_PER_S = 9.0
#: Every so often as many requests as this come within a moment.
BURST_EVERY_S = 5.0
BURST = 10
BURST_S = 0.2

IMAGES = {0: 30, 1: 30, 2: 15, 3: 8, 4: 7, 6: 5, 8: 5}
SIZES = {(224, 224): 25, (448, 448): 30, (896, 896): 25, (1344, 1344): 15, (2240, 1680): 5}
#: Beginnings that prompts share, in characters of text.
SYSTEMS = (2_000, 4_000, 8_000)
#: Targets for the first token, in seconds: of somebody who waits, and of a job in the background.
SLOS = {1.0: 60, 4.0: 40}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, what it says, and how soon its first token should come, in seconds."""

    at: float
    body: bytes
    slo_s: float


def build_trace(requests: int = REQUESTS, seed: int = SEED) -> list[Arrival]:
    chance = random.Random(seed)
    return [
        Arrival(at, _body(chance, number), _drawn(chance, SLOS)) for number, at in enumerate(_times(chance, requests))
    ]


def _times(chance: random.Random, requests: int) -> list[float]:
    steady = _poisson(chance)
    times: list[float] = []
    next_burst = BURST_EVERY_S
    while len(times) < requests:
        at = next(steady)
        if at >= next_burst:
            times += [next_burst + chance.random() * BURST_S for _ in range(BURST)]
            next_burst += BURST_EVERY_S
        times.append(at)
    return sorted(times)[:requests]


def _poisson(chance: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += chance.expovariate(RATE_PER_S)
        yield at


def _body(chance: random.Random, number: int) -> bytes:
    system = chance.randrange(len(SYSTEMS))
    images = [_image(*_drawn(chance, SIZES), number * 10 + index) for index in range(_drawn(chance, IMAGES))]
    question = f"Question {number}: " + "word " * int(chance.lognormvariate(5.0, 1.0))
    messages = [
        {"role": "system", "content": f"You are assistant {system}. ".ljust(SYSTEMS[system], "x")},
        {"role": "user", "content": [*images, {"type": "text", "text": question}]},
    ]
    return json.dumps({"model": "tiny", "messages": messages, "stream": True, "max_tokens": 1}).encode()


def _image(width: int, height: int, tag: int) -> dict[str, object]:
    """The beginning of a PNG of that size, which is all that is looked at."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + tag.to_bytes(8, "big")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(head).decode()}}


def _drawn(chance: random.Random, weights: dict[T, int]) -> T:
    return chance.choices(list(weights), list(weights.values()))[0]
