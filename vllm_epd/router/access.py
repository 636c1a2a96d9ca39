# SPDX-License-Identifier: Apache-2.0
"""The access log: one line of JSON for each request for an answer, written at its end."""

import logging
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

from vllm_epd.errors import ConfigError
from vllm_epd.router import jsonio
from vllm_epd.router.record import Record

logger = logging.getLogger(__name__)

#: Stands for standard output.
_OUTPUT = "-"
#: More of an error's message is left out.
_SHOWN = 300


def open_access_log(target: str | None) -> None:
    """Have this process write its access log to a file, which may be moved away meanwhile, or to `-`; None: nowhere.

    Raises:
        ConfigError: the file cannot be written.
    """
    if target is None:
        logger.setLevel(logging.WARNING)
        return
    try:
        handler = logging.StreamHandler(sys.stdout) if target == _OUTPUT else WatchedFileHandler(target)
    except OSError as error:
        raise ConfigError(f"access_log {target} cannot be written: {error}") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def wanted() -> bool:
    """Whether anybody wants the lines."""
    return logger.isEnabledFor(logging.INFO)


def write(record: Record, status: int) -> None:
    """Write the line of a request that is over, if anybody wants it; 499 stands for a client that went away."""
    if wanted():
        logger.info("%s", jsonio.encode(_line(record, status)).decode())


def _line(record: Record, status: int) -> jsonio.JsonObject:
    timeline = record.timeline
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "api": record.api,
        "model": record.model,
        "status": status,
        "stream": record.stream,
        "prompts": record.prompts,
        "choices": record.choices,
        "media": record.media,
        "media_tokens": [(kind, round(tokens)) for kind, tokens in record.media_tokens],
        "media_sizes": record.media_sizes,
        "text_tokens": record.text_tokens,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "instances": record.instances,
        "seconds": {span: round(seconds, 6) for span, seconds in timeline.seconds().items()},
        "total_s": round(timeline.total_s(), 6),
        "ttft_s": None if timeline.ttft_s is None else round(timeline.ttft_s, 6),
        "target_s": record.target_s,
        "retries": record.retries,
        "reason": record.reason,
        "error": None if record.error is None else record.error[:_SHOWN],
    }
