# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd profile`: from a running fleet to the file of a profile."""

import asyncio
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vllm_epd import __version__
from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.architecture import Architecture, read_architecture
from vllm_epd.planner.measure.chat import Shot
from vllm_epd.planner.measure.drive import Driver
from vllm_epd.planner.measure.machine import this_machine
from vllm_epd.planner.measure.reduce import Costs, reduce
from vllm_epd.planner.measure.samples import Measured, Sample, Shape
from vllm_epd.planner.measure.series import Round, contention_rounds, rounds
from vllm_epd.planner.measure.target import Target, find_target
from vllm_epd.planner.profile.profile import Hardware, Profile
from vllm_epd.planner.profile.store import load_profile, save_profile
from vllm_epd.types import Role

TIMEOUT = aiohttp.ClientTimeout(total=600.0, sock_connect=10.0)
WARMUP = 3
"""Requests of each kind before anything is measured."""

CALIBRATION_WORDS = (50, 150)
RESERVED = {"cpu": 0, "cuda": 2 * 2**30}
"""Bytes that a runtime keeps for itself on a device."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        model: name by which it is served, or the folder it was loaded from.
        url: of a router or server.
        out: file of the profile.
        folder: of the model's files, where it is not where the server has it from.
        tier: name of the links between the instances.
        whole: a profile of the same model where one instance prefills and decodes.
        repeats: of each request.
        seed: of what is sent, so that the same is sent again, which a server may still know; None for what is new.
    """

    model: str
    url: str
    out: Path
    folder: Path | None = None
    tier: str | None = None
    whole: Path | None = None
    repeats: int = 7
    seed: int | None = None


def profile_command(wanted: Wanted, console: Console) -> int:
    """Measure, fit and write; returns the exit code.

    Raises:
        ConfigError: it cannot be measured as asked.
    """
    if wanted.repeats < 1:
        raise ConfigError(f"repeats must be 1 or more, got {wanted.repeats}")
    found = asyncio.run(measure_profile(wanted, console))
    save_profile(found, wanted.out)
    for name, fit in found.fit.items():
        console.print(f"{name}: {fit.points} points, errors {fit.mean:.1%} on average, {fit.worst:.1%} at most")
    console.print(f"written: {wanted.out}", markup=False, soft_wrap=True)
    return 0


async def measure_profile(wanted: Wanted, console: Console) -> Profile:
    """Measure and fit.

    Raises:
        ConfigError: it cannot be measured as asked.
    """
    whole = None if wanted.whole is None else load_profile(wanted.whole)
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        target = await find_target(session, wanted.url, wanted.model)
        language = target.of(Role.DECODE)
        architecture = read_architecture(wanted.folder or Path(target.root), language.software.get("dtype"))
        driver = Driver(session, target, np.random.default_rng(wanted.seed))
        hardware, shape, per_word = this_machine(), _shape(target), await _tokens_per_word(driver)
        asked = rounds(architecture.media, target.max_context, per_word, wanted.repeats)
        if hardware.device == "cpu" and driver.is_here and shape.decode_apart:
            asked += contention_rounds(target.max_context, per_word, wanted.repeats)
        await _warm_up(driver, asked)
        await driver.learn_readings()
        samples = await _run(driver, asked, console)
    if whole is not None and not shape.decode_apart:
        raise ConfigError(f"{wanted.url} has no decode instance of its own; --whole is for topologies such as 1E1P1D")
    bytes_per_token = architecture.embedding_per_token, architecture.kv_per_token
    costs = reduce(Measured(samples, architecture.media, shape, *bytes_per_token), hardware.cores, whole)
    return _profile(wanted, target, architecture, hardware, costs, len(samples))


async def _tokens_per_word(driver: Driver) -> float:
    few, many = [
        (await driver.send("calibration", (Shot(words, (), 4),))).answer.prompt_tokens for words in CALIBRATION_WORDS
    ]
    return (many - few) / (CALIBRATION_WORDS[1] - CALIBRATION_WORDS[0])


async def _warm_up(driver: Driver, asked: Sequence[Round]) -> None:
    for series in dict.fromkeys(each.series for each in asked):
        last = [each for each in asked if each.series == series][-1]
        for _ in range(WARMUP):
            await driver.send(series, last.shots)


async def _run(driver: Driver, asked: Sequence[Round], console: Console) -> list[Sample]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("measuring", total=sum(each.repeats for each in asked))

        def advance(done: Round) -> None:
            progress.update(task, advance=1, description=done.series)

        return await driver.run(asked, advance)


def _shape(target: Target) -> Shape:
    prefill = target.of(Role.PREFILL).roles
    return Shape(Role.ENCODE not in prefill, Role.DECODE not in prefill, target.routed)


def _profile(
    wanted: Wanted, target: Target, architecture: Architecture, hardware: Hardware, costs: Costs, requests: int
) -> Profile:
    tier = wanted.tier or ("shm" if hardware.device == "cpu" else "cuda_ipc")
    letters = sorted((server.roles.letters for server in target.servers), key="EPD".index)
    asked = "".join(f"1{each}" for each in letters) + (" behind a router" if target.routed else "")
    software = {"vllm_epd": __version__, "python": platform.python_version(), **target.of(Role.DECODE).software}
    return Profile(
        model=wanted.model,
        origin="measured",
        hardware=hardware,
        media=architecture.media,
        preprocess=costs.preprocess,
        encode=costs.encode,
        prefill=costs.prefill,
        decode=costs.decode,
        links={} if costs.link is None else {tier: costs.link},
        memory=architecture.memory(RESERVED[hardware.device], target.max_context),
        overhead=costs.overhead,
        software=software,
        fit=costs.fit,
        notes=(
            f"{requests} rounds of requests to {asked} over its API, {datetime.now(UTC):%Y-%m-%d},"
            f" repeats {wanted.repeats}" + ("" if wanted.seed is None else f", seed {wanted.seed}")
        ),
    )
