# SPDX-License-Identifier: Apache-2.0
"""Workloads from files: a trace of our own, the access log of a router, the result of `vllm bench serve`.

- **A trace**: one JSON object per line with the fields of `Request`, of which `number` may be left out.
- **The access log** (`vllm-epd route --access-log`): requests for an answer that were answered. An image whose first
  bytes told no size, such as one behind a URL, becomes a square of as many pixels as its estimated tokens stand for;
  video and audio become as long as they were estimated. The text beside media is what the router estimated it at, as it
  depends on the model how much of a prompt its media is; without media the whole prompt is the text.
- **`vllm bench serve --save-result --save-detailed`**: lengths and times of requests without media.
"""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from vllm_epd.errors import ConfigError
from vllm_epd.planner.workload.requests import Item, Kind, Request
from vllm_epd.router.costs import AUDIO_TOKENS_PER_S, PIXELS_PER_TOKEN, VIDEO_TOKENS_PER_S

#: Frames of a video, whose tokens the log has and whose size it has not: two a second, as Qwen2-VL takes them.
_FRAMES_PER_S = 2
_OK = 200
#: For whatever a log does not tell.
_UNKNOWN_TOKENS = 100


def read_trace(file: Path) -> tuple[Request, ...]:
    """The requests of a file of any of the three kinds, numbered by the time at which they come, the first at 0.

    Raises:
        ConfigError: it cannot be read, is of none of these kinds, or has no requests.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    requests = sorted(_requests(text, file), key=lambda each: each.at)
    if not requests:
        raise ConfigError(f"{file} has no requests in it; expected a trace, an access log or a benchmark's result")
    start = requests[0].at
    return tuple(replace(each, number=number, at=each.at - start) for number, each in enumerate(requests))


def write_trace(requests: Iterable[Request], file: Path) -> None:
    """Write a trace of our own."""
    file.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in requests))


def _requests(text: str, file: Path) -> list[Request]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) == 1 and isinstance(whole := _parsed(lines[0][1], file, lines[0][0]), dict) and "input_lens" in whole:
        return _of_benchmark(whole, file)
    found = []
    for number, line in lines:
        value = _parsed(line, file, number)
        try:
            request = _of_log(value) if isinstance(value, dict) and "request_id" in value else _of_trace(value)
        except (msgspec.ValidationError, ConfigError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}, line {number}: {_said(error)}") from error
        if request is not None:
            found.append(request)
    return found


def _parsed(line: str, file: Path, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}, line {number}: no JSON: {error}") from error


def _of_trace(value: Any) -> Request:
    _check_fields(value, Request)
    items = value.get("items", ())
    for item in items if isinstance(items, list) else ():
        _check_fields(item, Item)
    return msgspec.convert({"number": 0, **value}, Request)


def _check_fields(value: Any, cls: type[Any]) -> None:
    """Refuse what is no object, or has fields that would be passed over."""
    if not isinstance(value, dict):
        raise ConfigError(f"expected an object, got a {type(value).__name__}")
    known = [each.name for each in fields(cls)]
    if unknown := [key for key in value if key not in known]:
        raise ConfigError(f"unknown field {unknown[0]}; known: {', '.join(known)}")


def _of_log(entry: dict[str, Any]) -> Request | None:
    """The request behind a line of the access log; None where it was not answered."""
    if entry["status"] != _OK or entry["error"] is not None:
        return None
    at = datetime.fromisoformat(entry["time"]).timestamp() - entry["total_s"]
    media = entry.get("media_tokens", [])
    prompt, output = entry["prompt_tokens"], entry["completion_tokens"]
    sizes = entry.get("media_sizes", [None] * len(media))
    text = entry.get("text_tokens") if media or prompt is None else prompt
    if text is None:
        text = _UNKNOWN_TOKENS if prompt is None else prompt - sum(tokens for _, tokens in media)
    items = tuple(_item(Kind(kind), tokens, size) for (kind, tokens), size in zip(media, sizes, strict=True))
    return Request(0, at, max(1, round(text)), max(1, _UNKNOWN_TOKENS if output is None else output), items)


def _item(kind: Kind, tokens: float, size: list[int] | None) -> Item:
    """A medium of that size, or one that the router would estimate at so many tokens."""
    if size is not None:
        return Item(kind, *size)
    if kind is Kind.AUDIO:
        return Item(kind, frames=0, seconds=tokens / AUDIO_TOKENS_PER_S)
    frames = 1 if kind is Kind.IMAGE else max(1, round(_FRAMES_PER_S * tokens / VIDEO_TOKENS_PER_S))
    side = max(1, round(math.sqrt(tokens * PIXELS_PER_TOKEN / frames)))
    return Item(kind, side, side, frames)


def _of_benchmark(result: dict[str, Any], file: Path) -> list[Request]:
    """The requests of a detailed result; those that failed have generated nothing and are left out."""
    if "start_times" not in result:
        raise ConfigError(f"{file} has no start_times; run vllm bench serve with --save-detailed")
    rows = zip(result["start_times"], result["input_lens"], result["output_lens"], strict=True)
    return [Request(0, start, text, output) for start, text, output in rows if text > 0 and output > 0]


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
