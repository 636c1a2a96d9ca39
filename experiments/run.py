# SPDX-License-Identifier: Apache-2.0
"""`python -m experiments.run NAME [...] | all | --list`: carry out experiments, keep their results."""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
from rich.console import Console

from experiments.kinds import KINDS, Kind
from experiments.result import Findings, Made, Result, rounded, save
from experiments.setting import Experiment, reduced
from experiments.show import FOLDER, RESULTS, show
from vllm_epd.config import read_mapping
from vllm_epd.errors import ConfigError, EPDError

CONFIGS = FOLDER / "configs"
ORIGIN = "simulated on a derived profile"
PACKAGES = ("vllm-epd", "numpy", "msgspec", "omegaconf", "optuna")


def names() -> tuple[str, ...]:
    """Of all experiments."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))


def load_experiment(name: str) -> Experiment:
    """The configuration of an experiment.

    Raises:
        ConfigError: there is none of that name, or it says something else than its kind asks for.
    """
    if name not in names():
        raise ConfigError(f"unknown experiment {name!r}; there are {', '.join(names())}")
    path = CONFIGS / f"{name}.yaml"
    try:
        experiment: Experiment = msgspec.convert(read_mapping(path), Kind)
        return experiment
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def find(experiment: Experiment) -> Findings:
    """Carry it out."""
    return KINDS[type(experiment)](experiment)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    asked = _parser().parse_args(arguments)
    console = Console()
    try:
        if asked.list or not asked.names:
            for name in names():
                console.print(f"{name:12} {load_experiment(name).title}")
            return 0
        for name in names() if asked.names == ["all"] else asked.names:
            _carry_out(name, console, quick=asked.quick)
    except EPDError as error:
        console.print(f"error: {error}", style="red")
        return 2
    return 0


def _carry_out(name: str, console: Console, *, quick: bool) -> None:
    """Show a result; keep it too, unless it is a quick one."""
    experiment = load_experiment(name)
    begun = time.perf_counter()
    findings = find(reduced(experiment) if quick else experiment)
    made = _made(time.perf_counter() - begun)
    result = Result(name, experiment.title, ORIGIN, experiment.where_off, findings, made)
    show(result, console)
    if not quick:
        save(result, RESULTS / f"{name}.json")


def _made(seconds: float) -> Made:
    machine = f"{platform.machine()}, {platform.system()}"
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return Made(_commit(), machine, versions, rounded(seconds))


def _commit() -> str:
    """The commit of what ran; results and figures, which are the output, may differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "..", ":!results", ":!figures", ":!README.md")
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; `all` for all")
    parser.add_argument("--list", action="store_true", help="list them")
    parser.add_argument("--quick", action="store_true", help="with few requests and seeds; nothing is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
