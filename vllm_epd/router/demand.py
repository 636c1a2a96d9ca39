# SPDX-License-Identifier: Apache-2.0
"""What one request asks of the stages, as estimated before any of them has seen it. Pure."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from vllm_epd.router import fields, jsonio
from vllm_epd.router.capacity import Ask
from vllm_epd.router.costs import BYTES_PER_TOKEN, Means, chat_tokens, completion_tokens, media_tokens, metadata_tokens
from vllm_epd.router.fields import Dest
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.prefixes import Name, chain
from vllm_epd.router.requests import Api, ClientRequest

#: What an answer is taken for that nobody has limited.
ANSWER_TOKENS = 256.0


class Demand(Struct, frozen=True):
    """The estimate; all numbers are tokens.

    Attributes:
        media: of each media part.
        texts: of the text of each prompt; media belongs to the one prompt of a chat.
        answer: that each choice may generate.
        choices: choices of each prompt.
        prompts: the names of each prompt's blocks; empty if nobody asks for them.
    """

    media: tuple[float, ...] = ()
    texts: tuple[float, ...] = ()
    answer: float = ANSWER_TOKENS
    choices: int = 1
    prompts: tuple[Sequence[Name], ...] = ()

    def prompt(self, index: int) -> float:
        """One prompt with its media."""
        return self.texts[index] + sum(self.media)

    def most(self, index: int) -> float:
        """What one prompt may have: a token of text is at least a byte, as each digit is for many tokenizers."""
        return BYTES_PER_TOKEN * self.texts[index] + sum(self.media)

    def prefill(self, index: int) -> Ask:
        """What prefilling one prompt takes."""
        tokens = self.prompt(index)
        return Ask(1, tokens, tokens)

    def decode(self, index: int) -> Ask:
        """What generating one choice takes."""
        return Ask(1, self.prompt(index), self.answer)

    def both(self) -> Ask:
        """What an instance does that serves all prompts and choices by itself."""
        tokens = sum(map(self.prompt, range(len(self.texts))))
        sequences = len(self.texts) * self.choices
        return Ask(sequences, tokens, tokens + sequences * self.answer)

    def names(self, index: int) -> Sequence[Name]:
        """The names of one prompt's blocks."""
        return self.prompts[index] if self.prompts else ()

    def with_items(self, items: Iterable[EncodedItem]) -> "Demand":
        """The same with what encoding has told of the media, item by item."""
        sizes = [float(metadata_tokens(item.metadata) or old) for item, old in zip(items, self.media, strict=True)]
        return replace(self, media=tuple(sizes))


def estimate(request: ClientRequest, means: Means, *, named: bool) -> Demand:
    """What a request asks for, with the names of its prompts' blocks if they are wanted."""
    chat = request.api is Api.CHAT
    texts = [chat_tokens(request.body["messages"])] if chat else map(completion_tokens, request.prompts)
    asked = request.max_tokens
    return Demand(
        media=tuple(media_tokens(each, means, request.inline) for each in request.media),
        texts=tuple(texts),
        answer=float(asked) if type(asked) is int else ANSWER_TOKENS,
        choices=request.n,
        prompts=_chains(request) if named else (),
    )


def learn(items: Iterable[EncodedItem], means: Means) -> None:
    """Remember how large media of each kind has turned out to be."""
    for item in items:
        if (tokens := metadata_tokens(item.metadata)) is not None:
            means.note(item.modality, tokens)


#: Says nothing about what the prompt is.
_OF_REQUESTS = frozenset({"messages", "prompt", "priority", "session_id", "vllm_xargs"})


def _told_apart(request: ClientRequest) -> Any:
    """The messages with a digest in the place of each mark, which is another one in each request."""
    if not request.inline:
        return request.body["messages"]
    written = jsonio.encode(request.body["messages"])
    for number, pieces in enumerate(request.inline.data):
        hashed = sha256()
        for piece in pieces:
            hashed.update(piece)
        written = written.replace(request.inline.marked(number), hashed.hexdigest().encode())
    return jsonio.decode(written)


def _chains(request: ClientRequest) -> tuple[Sequence[Name], ...]:
    context = fields.select(request.api.rules, request.body, Dest.ALL, Dest.PROMPT)
    prompts = [_told_apart(request)] if request.api is Api.CHAT else [[each] for each in request.prompts]
    around = {name: value for name, value in context.items() if name not in _OF_REQUESTS}
    return tuple(chain(around, prompt) for prompt in prompts)
