# SPDX-License-Identifier: Apache-2.0
"""What instances did when, as a file for chrome://tracing and Perfetto."""

import json
from pathlib import Path
from typing import Any


class ChromeTrace:
    """Takes what a simulation tells of its instances: pass it as `trace`, then `write` it.

    Each instance is a thread; the events are those of the Trace Event Format with begin and duration in microseconds.
    """

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}
        self._events: list[dict[str, Any]] = []

    def __call__(self, instance: str, what: str, begun: float, ended: float) -> None:
        """An instance was at something from one time to another, in seconds."""
        thread = self._threads.setdefault(instance, len(self._threads))
        times = {"ts": 1e6 * begun, "dur": 1e6 * (ended - begun)}
        self._events.append({"name": what, "ph": "X", "pid": 0, "tid": thread, **times})

    def write(self, file: Path) -> None:
        """Write all of it."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": thread, "args": {"name": name}}
            for name, thread in self._threads.items()
        ]
        file.write_text(json.dumps({"traceEvents": [*names, *self._events], "displayTimeUnit": "ms"}))
