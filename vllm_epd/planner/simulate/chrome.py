# SPDX-License-Identifier: Apache-2.0
"""What instances did when, as a file for chrome://tracing and Perfetto."""

import json
from pathlib import Path
from typing import Any


class ChromeTrace:
    """Takes what a simulation tells of its instances: pass it as `trace`, then `write` it.

    Each instance is a process, and what it does are its threads; the events are those of the Trace Event Format, with
    begin and duration in microseconds.
    """

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[str, str], int] = {}
        self._events: list[dict[str, Any]] = []

    def __call__(self, instance: str, what: str, begun: float, ended: float) -> None:
        """An instance was at something from one time to another, in seconds."""
        process = self._processes.setdefault(instance, len(self._processes))
        thread = self._threads.setdefault((instance, what), len(self._threads))
        times = {"ts": 1e6 * begun, "dur": 1e6 * (ended - begun)}
        self._events.append({"name": what, "ph": "X", "pid": process, "tid": thread, **times})

    def write(self, file: Path) -> None:
        """Write all of it."""
        names = [
            {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
            for name, process in self._processes.items()
        ]
        names += [
            {"name": "thread_name", "ph": "M", "pid": self._processes[name], "tid": thread, "args": {"name": what}}
            for (name, what), thread in self._threads.items()
        ]
        file.write_text(json.dumps({"traceEvents": [*names, *self._events], "displayTimeUnit": "ms"}))
