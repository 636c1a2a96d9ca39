# SPDX-License-Identifier: Apache-2.0
"""Sends the rounds of a series and reads what the instances say of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import process_time

import aiohttp
from numpy.random import Generator

from vllm_epd.errors import ConfigError
from vllm_epd.planner.measure.chat import Answer, Shot, ask, chat_body
from vllm_epd.planner.measure.meters import Meters, read_meters
from vllm_epd.planner.measure.processes import Processes
from vllm_epd.planner.measure.samples import Sample
from vllm_epd.planner.measure.series import Round
from vllm_epd.planner.measure.target import Target
from vllm_epd.types import Role

READINGS = 50
"""How often an instance is asked until it has counted a request that it has answered."""

POLL_S = 0.02


class Driver:
    """Asks one target."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, rng: Generator) -> None:
        """Use the session, and make what is sent with the random generator."""
        self._session = session
        self._target = target
        self._rng = rng
        self._roles = {role: target.of(role).url for role in Role}
        self._urls = {*self._roles.values(), *([target.url] if target.routed else [])}
        self._reading_s = dict.fromkeys(self._urls, 0.0)
        self._processes = Processes.of(self._urls)
        self._all_reading_s = 0.0

    async def run(self, rounds: Sequence[Round], progress: Callable[[Round], None]) -> list[Sample]:
        """Send all rounds, one after the other, and again as often as asked; `progress` hears of each.

        So that what else goes on for a while meets all rounds alike, and one repeat of each.

        Raises:
            ConfigError: a request or a reading failed.
        """
        samples = []
        for number in range(max(each.repeats for each in rounds)):
            for each in rounds:
                if number < each.repeats:
                    send = self.send_beside if each.series == "contended" else self.send
                    samples.append(await send(each.series, each.shots))
                    progress(each)
        return samples

    async def send(self, series: str, shots: tuple[Shot, ...]) -> Sample:
        """Send requests at once, and wait until all are done and counted."""
        bodies = [self._body(shot) for shot in shots]

        async def at_once() -> list[Answer]:
            return await asyncio.gather(*(ask(self._session, self._target.url, body) for body in bodies))

        return await self._sample(series, shots, at_once)

    async def send_beside(self, series: str, shots: tuple[Shot, ...]) -> Sample:
        """Send the first request, and while it is answered the second, as often as there is time for."""
        first, second = shots
        body = self._body(first)

        async def one_after_the_other() -> list[Answer]:
            begun, others = asyncio.Event(), []
            answer = asyncio.create_task(ask(self._session, self._target.url, body, begun.set))
            answer.add_done_callback(lambda _: begun.set())
            try:
                await begun.wait()
                while not answer.done():
                    others.append(await ask(self._session, self._target.url, self._body(second)))
                return [await answer, *others]
            finally:
                answer.cancel()

        return await self._sample(series, shots, one_after_the_other)

    def _body(self, shot: Shot) -> bytes:
        return chat_body(self._target.model, shot, self._rng)

    async def _sample(
        self, series: str, shots: tuple[Shot, ...], send: Callable[[], Awaitable[Sequence[Answer]]]
    ) -> Sample:
        used, before, own = self._used(), await self._read(), process_time()
        answers = await send()
        client_s = process_time() - own
        shots += shots[-1:] * (len(answers) - len(shots))
        counted, readings = await self._counted(before, shots)
        meters = {role: counted[url] for role, url in self._roles.items()}
        router_s = counted[self._target.url].front_s if self._target.routed else 0.0
        all_s = None if used is None else self._used_since(used, readings + 1)
        return Sample(series, shots, tuple(answers), meters, router_s, all_s, client_s)

    @property
    def is_here(self) -> bool:
        """Whether the target's processes run on this host."""
        return self._processes is not None

    async def learn_readings(self) -> None:
        """Find out what a reading itself takes of processor time."""
        before, used = await self._read(), self._used()
        for _ in range(READINGS):
            after = await self._read()
        self._all_reading_s = 0.0 if used is None else self._used_since(used, 0) / READINGS
        self._reading_s = {url: (after[url].front_s - before[url].front_s) / READINGS for url in after}

    async def _counted(self, before: Mapping[str, Meters], shots: Sequence[Shot]) -> tuple[dict[str, Meters], int]:
        """What was counted since by each, once those who generate have counted all; and in how many readings.

        An instance that only decodes is not asked for answers of one token.
        """
        prefill, decode = self._roles[Role.PREFILL], self._roles[Role.DECODE]
        going_on = sum(shot.output_tokens > 1 for shot in shots)
        for readings in range(1, READINGS + 1):
            after = await self._read()
            found = {
                url: (after[url] - before[url]).without_readings(readings, self._reading_s[url]) for url in self._urls
            }
            if found[prefill].finished >= len(shots) and found[decode].finished >= going_on:
                break
            await asyncio.sleep(POLL_S)
        if found[prefill].finished != len(shots) or not going_on <= found[decode].finished <= len(shots):
            raise ConfigError(
                f"{self._target.url} has counted {found[prefill].finished:g} requests at the instance that prefills and"
                f" {found[decode].finished:g} at the one that decodes where {len(shots)} were sent; nobody else may use"
                " it while it is measured"
            )
        return found, readings

    def _used(self) -> float | None:
        return None if self._processes is None else self._processes.seconds()

    def _used_since(self, before: float, readings: int) -> float:
        assert self._processes is not None
        return self._processes.seconds() - before - readings * self._all_reading_s

    async def _read(self) -> dict[str, Meters]:
        return await read_meters(self._session, self._urls)
