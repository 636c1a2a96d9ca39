# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd plan`: a search, a report of it, and the files to run what it found."""

import argparse
import importlib.util
import json
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_epd.errors import ConfigError
from vllm_epd.planner.commands.inputs import base_fleet, requests_of, workload
from vllm_epd.planner.profile.store import load_profile
from vllm_epd.planner.search.cells import LARGEST
from vllm_epd.planner.search.objective import Slo
from vllm_epd.planner.search.sought import Problem, Step
from vllm_epd.planner.search.traffic import rate_of
from vllm_epd.planner.workload.generate import generate

NEEDED = ("optuna", "matplotlib")
TIME_LIMIT_S, LARGE_TIME_LIMIT_S = 120.0, 600.0
MOST_TRIALS = 2000
COST = "cost"
UNIT_RATE = 1.0
"""Of a workload without a rate, which is stretched anyway."""
DEPLOYMENT, REPORT, NUMBERS, FIGURE = "plan.yaml", "report.txt", "plan.json", "plan.png"


def plan_command(options: argparse.Namespace, console: Console) -> int:
    """Search, report and write.

    Raises:
        ConfigError: something is missing or wrong, or no fleet keeps what is promised.
    """
    _check_installed()
    from vllm_epd.planner.commands.figure import draw
    from vllm_epd.planner.search import report
    from vllm_epd.planner.search.planning import plan
    from vllm_epd.planner.search.search import Budget

    problem = _problem(options)
    budget = Budget(*_limits(options))
    folder = _folder(options.out)
    with Bar(console) as bar:
        found = plan(problem, budget, time.monotonic, bar.show)
    run = report.deploy(found, options.model)
    command = f"vllm-epd up --config {shlex.quote(str(folder / DEPLOYMENT))}"
    text = report.text(found, run, command)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    try:
        (folder / DEPLOYMENT).write_text(run.yaml())
        (folder / REPORT).write_text(text)
        (folder / NUMBERS).write_text(json.dumps(report.numbers(found, run, command), indent=2) + "\n")
        draw(found, folder / FIGURE)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error}") from error
    if options.model is None:
        console.print(f"the model is called {run.model!r}, as in the profile; --model NAME changes that", markup=False)
    console.print(f"written to {folder}: {DEPLOYMENT}, {REPORT}, {NUMBERS}, {FIGURE}", highlight=False)
    return 0


class Bar:
    """How far a search is, on a terminal."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[best]}")
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("preparing", total=1.0, best="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        """Be told."""
        best = f"{step.best} {step.value:.3g}" if step.best else ""
        self._progress.update(self._task, description=step.what, completed=step.done, best=best)


def _problem(options: argparse.Namespace) -> Problem:
    cost = options.objective == COST
    profile = load_profile(options.profile)
    rate = options.rate
    spec = workload(options, UNIT_RATE if rate is None and options.workload is None and not cost else rate)
    if cost and rate is None:
        rate = spec.rate or rate_of(generate(spec))
    return Problem(
        profile=profile,
        requests=requests_of(spec),
        slo=Slo(options.slo_ttft, options.slo_tpot, options.slo_share),
        gpus=options.gpus,
        rate=rate if cost else None,
        base=base_fleet(options, profile),
        seed=spec.seed,
    )


def _limits(options: argparse.Namespace) -> tuple[int, float | None]:
    """Trials and seconds. Without a number of trials, time ends a search."""
    trials, seconds = options.trials, options.time_limit
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials: expected at least 1, got {trials}")
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--time-limit: expected more than 0 s, got {seconds}")
    if trials is None and seconds is None:
        seconds = TIME_LIMIT_S if options.gpus <= LARGEST else LARGE_TIME_LIMIT_S
    return MOST_TRIALS if trials is None else trials, seconds


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error}") from error
    return folder


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"plan needs {' and '.join(missing)}; pip install 'vllm-epd[plan]'")
