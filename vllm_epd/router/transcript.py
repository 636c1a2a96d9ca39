# SPDX-License-Identifier: Apache-2.0
"""What a client has been sent of a stream, as far as another instance needs it to go on. Pure.

The instance is asked for the ids of its tokens, which the client did not ask for: they are noted here and taken out. Of
a stream nothing is parsed for that. Quotes inside strings are escaped in JSON, so generated text cannot look like what
is searched for.
"""

import re
from collections.abc import Iterator, Sequence

from vllm_epd.router import sse

_TOKENS = re.compile(rb'"token_ids":\[([0-9,]*)\]')
_PROMPT = re.compile(rb'"prompt_token_ids":\[[0-9,]*\]')
_CREATED = re.compile(rb'"created":([0-9]+)')
_USAGE = re.compile(rb'"choices":\[\],"usage":\{')
_FINISHED = re.compile(rb'"finish_reason":"')
_WITHOUT_TEXT = re.compile(rb'"(?:content|text)":""|"delta":\{\}')
#: What vLLM sends only because token ids were asked for: a token whose text is held back.
_EMPTY = re.compile(rb'"delta":\{\},"logprobs":null,"finish_reason":null')


class Transcript:
    """The tokens of one answer whose text the client has, and when its stream says that it began.

    Attributes:
        tokens: their ids.
        created: the time with which all chunks are stamped; None before the first one.
        finished: the answer has come to its end, though perhaps not its stream.
        whole: nothing is missing but the closing event.
    """

    def __init__(self, *, tokens: Sequence[int] = (), created: int | None = None, wants_usage: bool = False) -> None:
        """Begin with what another instance has said already; the stream may have to end with the usage."""
        self.tokens = list(tokens)
        self.created = created
        self.finished = self.whole = False
        self._wants_usage = wants_usage
        self._held: list[int] = []
        self._blocks = b""

    def pass_on(self, events: bytes) -> bytes:
        """Some whole events as the client gets them; may be empty.

        A character may take several tokens. What comes with the first ones, such as log probabilities, is kept back
        until its text is there, so that the client has nothing that another instance might generate anew.
        """
        return b"".join(self._noted(block) for block in sse.blocks(events))

    def go_on(self) -> None:
        """Another instance goes on after `tokens`: what the last one held back is generated anew."""
        self._held.clear()
        self._blocks = b""

    def _noted(self, block: bytes) -> bytes:
        if self.created is None and (stamp := _CREATED.search(block)):
            self.created = int(stamp[1])
        if _PROMPT.search(block):
            block = _PROMPT.sub(b'"prompt_token_ids":null', block)
        self.whole = self.whole or (self.finished and bool(_USAGE.search(block)))
        found = _TOKENS.search(block)
        if found is None:
            return block
        self._held += _ids(found[1])
        if not _EMPTY.search(block):
            self._blocks += _TOKENS.sub(b'"token_ids":null', block)
        self.finished = self.finished or bool(_FINISHED.search(block))
        self.whole = self.finished and not self._wants_usage
        if _WITHOUT_TEXT.search(block) and not self.finished:
            return b""
        self.tokens += self._held
        self._held.clear()
        out, self._blocks = self._blocks, b""
        return out


def _ids(listed: bytes) -> Iterator[int]:
    return (int(each) for each in listed.split(b",") if each)
