# SPDX-License-Identifier: Apache-2.0
"""Answers with their log probabilities, and how far two of them are from each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.codec.cases import CANDIDATES, OUTPUT_TOKENS
from tests.bench.errors import BenchError
from tests.engine.stages import post
from tests.engine.traffic import Json

FORCED = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0, "max_tokens": 1}


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, and the log probabilities of those that came closest, by token."""

    name: str
    candidates: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for a prompt of `prompt_tokens`."""

    text: str
    tokens: tuple[Token, ...]
    prompt_tokens: int

    def same_tokens(self, other: "Answer") -> bool:
        return [token.name for token in self.tokens] == [token.name for token in other.tokens]

    def differences(self, other: "Answer") -> Iterator[float]:
        """Of the log probabilities that both give to these tokens, up to the first one that `other` has not chosen."""
        for wanted, found in zip(self.tokens, other.tokens, strict=True):
            if wanted.name not in found.candidates:
                raise BenchError(f"{wanted.name} is not among the {CANDIDATES} likeliest: {dict(found.candidates)}")
            yield abs(found.candidates[wanted.name] - wanted.candidates[wanted.name])
            if found.name != wanted.name:
                return


async def ask(url: str, question: Json) -> Answer:
    """The greedy answer to a chat request."""
    output = {"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "return_tokens_as_token_ids": True}
    answer = await post(url, {**question, **output, "logprobs": True, "top_logprobs": CANDIDATES})
    (choice,) = answer["choices"]
    return Answer(
        choice["message"]["content"],
        tuple(_token(entry) for entry in choice["logprobs"]["content"]),
        answer["usage"]["prompt_tokens"],
    )


async def force(url: str, question: Json, answer: Answer) -> list[float]:
    """The log probabilities of the tokens of an answer's text, as part of the prompt."""
    messages = [*question["messages"], {"role": "assistant", "content": answer.text}]
    forced = (await post(url, {**question, **FORCED, "messages": messages}))["prompt_logprobs"]
    return [_only(entry) for entry in forced[answer.prompt_tokens :]]


def forced_differences(wanted: Sequence[float], found: Sequence[float]) -> list[float]:
    """Token by token."""
    return [abs(one - other) for one, other in zip(wanted, found, strict=True)]


def _token(entry: Json) -> Token:
    return Token(entry["token"], {each["token"]: each["logprob"] for each in entry["top_logprobs"]})


def _only(entry: Json) -> float:
    (value,) = entry.values()
    return float(value["logprob"])
