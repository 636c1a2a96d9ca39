# SPDX-License-Identifier: Apache-2.0
"""What is asked: cases of distinct, seeded requests, the same ones for every system."""

import base64
import json
from dataclasses import dataclass
from random import Random
from typing import Any

from vllm_epd.demo import demo_image

MODEL = "bench"
OUTPUT_TOKENS = 16
WORDS = ("red", "boat", "harbour", "white", "birds", "green", "hills", "garden", "bridge", "small", "dog", "street")
WORDS_PER_PROMPT = 40


@dataclass(frozen=True, slots=True)
class Case:
    """Requests of one kind.

    Attributes:
        requests: how many are measured.
        warmup: how many more are sent just before, unmeasured.
        images: in each request.
        side: of each image, in pixels.
        concurrency: how many are under way at once.
    """

    name: str
    requests: int
    warmup: int = 3
    images: int = 0
    side: int = 0
    concurrency: int = 1


# A 1408 x 1408 picture of noise is a PNG of 4 MB, 5.3 MB in base64; the model's processor scales it to 1 megapixel,
# so two of them take 2500 of the 4096 tokens.
# For each new number of tokens a CPU's matrix kernels are made anew, which takes 7 ms: short prompts are warmed up with
# as many as are measured.
CASES = (
    Case("text", requests=20, warmup=20),
    Case("image_448", requests=20, warmup=20, images=1, side=448),
    Case("images_4mb", requests=8, warmup=2, images=2, side=1408),
    Case("image_448_x8", requests=24, warmup=8, images=1, side=448, concurrency=8),
)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request, ready to be sent without encoding its images once more.

    Attributes:
        opening: the JSON object of everything but the output, without its closing brace.
        has_media: whether there is something to encode.
    """

    opening: bytes
    has_media: bool

    def body(self, **fields: Any) -> bytes:
        """The whole JSON object, with further fields."""
        return self.opening + b"," + json.dumps(fields).encode()[1:]


def build_requests(case: Case) -> tuple[list[ChatRequest], list[ChatRequest]]:
    """The requests for warming up and those to measure, all of them different."""
    made = [_build(case, number) for number in range(case.warmup + case.requests)]
    return made[: case.warmup], made[case.warmup :]


def _build(case: Case, number: int) -> ChatRequest:
    random = Random(f"{case.name} {number}")
    content = [_image(random.randrange(2**31), case.side) for _ in range(case.images)]
    content.append({"type": "text", "text": " ".join(random.choices(WORDS, k=WORDS_PER_PROMPT))})
    common = {"model": MODEL, "temperature": 0, "ignore_eos": True}
    body = {"messages": [{"role": "user", "content": content}], **common}
    return ChatRequest(json.dumps(body).encode()[:-1], has_media=case.images > 0)


def _image(seed: int, side: int) -> dict[str, Any]:
    data = base64.b64encode(demo_image(seed, side, side)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
