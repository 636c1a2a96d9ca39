# SPDX-License-Identifier: Apache-2.0
"""What is remembered of one request beside its answer: for a header, a line in the log, and the metrics."""

import re
from collections.abc import Sequence
from contextvars import ContextVar

from msgspec import Struct, field

from vllm_epd.router.failures import SERVER_ERROR
from vllm_epd.router.requests import ClientRequest
from vllm_epd.router.timeline import Timeline, server_timing
from vllm_epd.types import Role

REQUEST_ID_HEADER = "X-Request-Id"
#: How a request is counted whose client went away.
CLIENT_GONE = 499
_TOO_MANY = 429

# Quotes inside strings are escaped in JSON, so generated text cannot look like these.
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*+:\s*+([0-9]+)')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*+:\s*+([0-9]+)')


class Record(Struct):
    """One request, from its arrival to its end.

    Attributes:
        request_id: the client's, or ours.
        timeline: what its time goes to.
        api: the path of the generating API that it came to; None for what is no request for an answer.
        model: what the client names, or None.
        stream: whether the answer is a stream.
        prompts: how many.
        choices: how many for each prompt.
        media: how many media parts.
        media_tokens: the kind of each, and what it is estimated at; this and the next two only for an access log.
        media_sizes: width and height of each, None where that is not known.
        text_tokens: what the text of all prompts is estimated at; None if nobody has looked into it.
        target_s: within which time its first token should be there; None if nobody has said.
        prompt_tokens: as the answer tells; None where it does not, or was not looked into.
        completion_tokens: the same of what was generated.
        instances: who was asked, by stage.
        retries: how often it started over, by the stage that failed.
        reason: name of what went wrong, one of few; None if nothing did.
        error: what that says.
    """

    request_id: str = "-"
    timeline: Timeline = field(default_factory=Timeline)
    api: str | None = None
    model: str | None = None
    stream: bool = False
    prompts: int = 0
    choices: int = 0
    media: int = 0
    media_tokens: Sequence[tuple[str, float]] = ()
    media_sizes: Sequence[tuple[int, int] | None] = ()
    text_tokens: float | None = None
    target_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    instances: dict[str, list[str]] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    error: str | None = None

    def describe(self, request: ClientRequest) -> None:
        """Note what the client asks for."""
        self.model, self.stream = request.model, request.stream
        self.prompts, self.choices, self.media = len(request.prompts), request.n, len(request.media)

    def asked(self, stage: Role, instance: str) -> None:
        """Note that an instance is asked to serve a stage."""
        known = self.instances.setdefault(stage, [])
        if instance not in known:
            known.append(instance)

    def retried(self, stage: str) -> None:
        """Note that it starts over after a stage failed."""
        self.retries[stage] = self.retries.get(stage, 0) + 1

    def count_tokens(self, answer: bytes) -> None:
        """Note the usage that a whole answer tells."""
        self.prompt_tokens = _number(_PROMPT_TOKENS, answer)
        self.completion_tokens = _number(_COMPLETION_TOKENS, answer)

    def time_per_token_s(self) -> float | None:
        """The mean time of a token after the first, at the end of a stream; None where that is not known."""
        ttft_s, tokens = self.timeline.ttft_s, self.completion_tokens or 0
        return None if ttft_s is None or tokens < 2 else (self.timeline.total_s() - ttft_s) / (tokens - 1)

    def missed_without_answer(self, status: int) -> bool:
        """Whether a stream that ends with `status` has missed its target without having begun; not by its own fault."""
        if not self.stream or self.target_s is None or self.timeline.first_token is not None:
            return False
        late = self.timeline.total_s() > self.target_s
        return late if status == CLIENT_GONE else status == _TOO_MANY or status >= SERVER_ERROR

    def headers(self) -> dict[str, str]:
        """What its answer says of it: its id; where the time until now went, if it is a request for an answer."""
        told = {REQUEST_ID_HEADER: self.request_id}
        if self.api is not None:
            told["Server-Timing"] = server_timing(self.timeline)
        return told

    def fail(self, error: BaseException) -> None:
        """Note what went wrong."""
        self.reason, self.error = type(error).__name__, str(error)


def _number(pattern: re.Pattern[bytes], answer: bytes) -> int | None:
    found = pattern.search(answer)
    return None if found is None else int(found[1])


#: That of the request which the present task serves, or serves a part of.
RECORD: ContextVar[Record] = ContextVar("record")


def request_id() -> str:
    """The id of the request that the present task serves; a dash if it serves none."""
    record = RECORD.get(None)
    return "-" if record is None else record.request_id
