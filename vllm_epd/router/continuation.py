# SPDX-License-Identifier: Apache-2.0
"""An answer that goes on from tokens of other instances becomes what a single server says of all of them. Pure.

The instance that goes on counts these tokens as a part of its prompt, and begins a stream of its own. Of a stream as
little is parsed as possible: its beginning, and the events that carry a usage.
"""

import re
from collections.abc import Iterator
from typing import Any

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio, sse
from vllm_epd.router.answers import decode_answer, says_nothing
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.opening import Opening
from vllm_epd.router.requests import Api

# Quotes inside strings are escaped in JSON, so generated text cannot look like these.
_USAGE = re.compile(rb'"usage"\s*+:\s*+\{')
_CREATED = b'"created":%d'


def continued_usage(usage: JsonObject, sent: int) -> JsonObject:
    """A usage with the `sent` tokens among what was generated."""
    return {
        **usage,
        "prompt_tokens": usage["prompt_tokens"] - sent,
        "completion_tokens": usage["completion_tokens"] + sent,
    }


def continued_answer(opening: Opening, raw: bytes) -> bytes:
    """D's whole answer with P's first token before it.

    Raises:
        UpstreamError: it is no answer with one choice and its usage.
    """
    answer = decode_answer(raw, "decode")
    try:
        (choice,) = answer["choices"]
        merged = _with_text(choice, opening) | {"logprobs": _logprobs(opening.choice.get("logprobs"), choice)}
        usage = continued_usage(answer["usage"], 1)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UpstreamError("the decode instance gave no usable answer to go on with", stage="decode") from error
    return jsonio.encode({**answer, "choices": [merged], "usage": usage})


class StreamContinuation:
    """Turns the events of an instance that goes on into those that follow what the client has."""

    def __init__(self, api: Api, sent: int, created: int | None) -> None:
        """The client has `sent` tokens of an answer; all chunks of it say that it began at `created`."""
        self._api = api
        self._sent = sent
        self._created = created
        self._begun = False
        self._theirs = self._ours = b""

    def rewrite(self, events: bytes) -> bytes:
        """Some whole events as the client gets them; may be empty.

        Raises:
            UpstreamError: an event that carries a usage cannot be read.
        """
        if not self._begun:
            events = b"".join(self._beginning(events))
        if self._theirs != self._ours:
            events = events.replace(self._theirs, self._ours)
        if _USAGE.search(events):
            events = b"".join(
                self._with_usage(block) if _USAGE.search(block) else block for block in sse.blocks(events)
            )
        return events

    def _beginning(self, events: bytes) -> Iterator[bytes]:
        """All but the chunk that names the role, which the client has; and when the instance says that it began."""
        for block in sse.blocks(events):
            if self._begun or not (data := next(sse.data_of(block), b"")):
                yield block
                continue
            self._begun = True
            created = decode_answer(data, "decode").get("created")
            if type(created) is int and self._created is not None:
                self._theirs, self._ours = _CREATED % created, _CREATED % self._created
            if self._api is not Api.CHAT or not says_nothing(block):
                yield block

    def _with_usage(self, block: bytes) -> bytes:
        chunks = [decode_answer(data, "decode") for data in sse.data_of(block)]
        try:
            fixed = [{**chunk, "usage": continued_usage(chunk["usage"], self._sent)} for chunk in chunks]
        except (LookupError, TypeError) as error:
            raise UpstreamError("the decode instance streamed an unreadable usage", stage="decode") from error
        return b"".join(sse.event(jsonio.encode(chunk)) for chunk in fixed)


def _with_text(choice: JsonObject, opening: Opening) -> JsonObject:
    if opening.api is Api.CHAT:
        said = choice["message"].get("content") or ""
        return {**choice, "message": {**choice["message"], "content": opening.text + said}}
    return {**choice, "text": opening.text + (choice["text"] or "")}


def _logprobs(first: Any, choice: JsonObject) -> Any:
    """Those of the first token and of the others; None where the client did not ask for any."""
    rest = choice.get("logprobs")
    if first is None or rest is None:
        return rest
    return {**rest, "content": [*first["content"], *(rest["content"] or ())]}
