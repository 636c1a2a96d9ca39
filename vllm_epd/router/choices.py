# SPDX-License-Identifier: Apache-2.0
"""Several one-choice answers become one answer with several choices, as one vLLM server gives it. Pure."""

from collections.abc import Sequence
from typing import Any

from vllm_epd.router.jsonio import JsonObject


def merge_usage(usages: Sequence[JsonObject], n: int) -> JsonObject:
    """The usage of a whole request from those of its branches, `n` of which share each prompt."""
    prompt = sum(_count(usage, "prompt_tokens") for usage in usages[::n])
    completion = sum(_count(usage, "completion_tokens") for usage in usages)
    merged = {
        **usages[0],
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if isinstance(usages[0].get("completion_tokens_details"), dict):
        merged["completion_tokens_details"] = _sum_details(usages)
    return merged


def merge_answers(answers: Sequence[JsonObject], n: int) -> JsonObject:
    """One answer from those of all branches in their order; `n` branches share each prompt.

    What vLLM gives only for a single choice (`metrics`) is left out, as it does itself.
    """
    choices = [
        {**choice, "index": index} for index, answer in enumerate(answers) for choice in answer.get("choices") or ()
    ]
    merged = {**answers[0], "choices": choices}
    usages = [answer["usage"] for answer in answers if isinstance(answer.get("usage"), dict)]
    if len(usages) == len(answers):
        merged["usage"] = merge_usage(usages, n)
    for name in ("metrics", "kv_transfer_params", "ec_transfer_params"):
        if name in merged:
            merged[name] = None
    return merged


class StreamMerger:
    """Turns the chunks of several one-choice streams into those of one stream.

    Chunks get the index of their choice, one id and one time of creation; the usage of each stream is kept
    back for `closing`.
    """

    def __init__(self, answer_id: str, n: int) -> None:
        self._id = answer_id
        self._n = n
        self._created: Any = None
        self._usages: dict[int, JsonObject] = {}
        self._last: JsonObject = {}

    def chunk(self, index: int, data: JsonObject) -> JsonObject | None:
        """A chunk of branch `index` as the client gets it; None if it does not get it."""
        if not data.get("choices") and isinstance(data.get("usage"), dict):
            self._usages[index] = data["usage"]
            self._last = data
            return None
        choices = [{**choice, "index": index} for choice in data.get("choices") or ()]
        return self._shared({**data, "choices": choices})

    def closing(self) -> JsonObject | None:
        """The chunk with the usage of all streams; None if they told none."""
        if not self._usages:
            return None
        usages = [self._usages[index] for index in sorted(self._usages)]
        chunk = {name: value for name, value in self._last.items() if name != "metrics"}
        return self._shared({**chunk, "choices": [], "usage": merge_usage(usages, self._n)})

    def _shared(self, chunk: JsonObject) -> JsonObject:
        if self._created is None:
            self._created = chunk.get("created")
        return {**chunk, "id": self._id, "created": self._created}


def _count(usage: JsonObject, name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


def _sum_details(usages: Sequence[JsonObject]) -> JsonObject:
    details = [usage.get("completion_tokens_details") or {} for usage in usages]
    return {name: sum(_count(each, name) for each in details) for name in details[0]}
