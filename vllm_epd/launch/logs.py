# SPDX-License-Identifier: Apache-2.0
"""Where the instances' output goes."""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from vllm_epd.errors import ConfigError

TAIL_BYTES = 2**16


def make_log_dir(chosen: str | None, environment: Mapping[str, str], now: datetime) -> Path:
    """The folder that was chosen, or a new one named after the time in the user's state folder.

    Raises:
        ConfigError: it cannot be made.
    """
    # The XDG specification treats an empty variable as an unset one.
    state = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    fresh = Path(state, "vllm_epd", f"{now:%Y-%m-%dT%H-%M-%S}-{os.getpid()}")
    folder = Path(chosen).expanduser() if chosen else fresh
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the log folder {folder}: {error.strerror or error}") from error
    return folder.absolute()


def last_lines(file: Path, count: int = 20) -> list[str]:
    """The end of a log; empty where there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
