# SPDX-License-Identifier: Apache-2.0
"""One simulated instance, as the router sees it: what it has been given, and what it has room for. Pure."""

from collections.abc import Sequence
from functools import partial

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.memory import Room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.engine import PREPROCESS, STAGES, Engine, Finished, Trace
from vllm_epd.planner.simulate.host import Host
from vllm_epd.planner.simulate.jobs import Part
from vllm_epd.planner.simulate.outcome import Use
from vllm_epd.planner.simulate.pool import Pool
from vllm_epd.router.policies import Load
from vllm_epd.types import RoleSet


class Instance:
    """One instance.

    Attributes:
        name: such as `E0`, by the roles that it began with.
        roles: what it does now.
        takes: whether it may be given work.
        room: what it can hold, in its present roles.
        pool: its embeddings.
        host: what it runs on.
        engine: does its steps.
        outstanding: parts, prompts and sequences that it has been given and has not done.
        work: what these are estimated at, in tokens.
        kv_tokens: reserved in its KV cache.
        sequences: prompts and sequences that have a place.
        seats: how many may have one.
    """

    def __init__(
        self,
        name: str,
        roles: RoleSet,
        room: Room,
        fleet: Fleet,
        profile: Profile,
        host: Host,
        finished: Finished,
        trace: Trace | None,
    ) -> None:
        self.name = name
        self.host = host
        self.engine = Engine(self, fleet, profile, host, finished, trace)
        self.outstanding = 0
        self.work = 0.0
        self.kv_tokens = 0
        self.sequences = 0
        self._device_preprocesses = fleet.workers_preprocess
        self._note_preprocess = None if trace is None else partial(trace, name, PREPROCESS)
        self._load: Load | None = None
        self._peaks = self._rooms = (0, 0)
        self.pool = Pool(0)
        self.become(roles, room)

    def become(self, roles: RoleSet, room: Room) -> None:
        """Take up roles, with nothing in hand; embeddings that are kept are lost."""
        limits = self.engine.limits
        self._peaks = self._peaks[0], max(self._peaks[1], self.pool.peak)
        self._rooms = max(self._rooms[0], room.kv_tokens), max(self._rooms[1], room.embedding_tokens)
        self.roles = roles
        self.room = room
        self.engine.become(roles, room)
        self.pool = Pool(room.embedding_tokens)
        # Of one that only prefills: a batch, and the next one.
        self.seats = limits.decode_sequences if roles.decode else 2 * limits.prefill_sequences
        self.takes = True

    @property
    def idle(self) -> bool:
        """Whether it does nothing, and nobody needs what it holds."""
        return not (self.sequences or self.kv_tokens or self.pool.held) and self.engine.idle

    def begin(self, work: float) -> None:
        """Count something that it has been given."""
        self.outstanding += 1
        self.work += work
        self._load = None

    def end(self, work: float) -> None:
        """That is done."""
        self.outstanding -= 1
        self.work = self.work - work if self.outstanding else 0.0
        self._load = None

    @property
    def load(self) -> Load:
        """What a policy is told of it; the same object until that changes."""
        if self._load is None:
            self._load = Load(self.outstanding, self.work)
        return self._load

    def fits(self, tokens: int) -> bool:
        """Whether there is a place for a sequence with so many tokens in the KV cache."""
        return self.sequences < self.seats and self.kv_tokens + tokens <= self.room.kv_tokens

    def sit(self, tokens: int) -> None:
        """Give a sequence a place."""
        self.sequences += 1
        self.kv_tokens += tokens
        if self.kv_tokens > self._peaks[0]:
            self._peaks = self.kv_tokens, self._peaks[1]

    def rise(self, tokens: int) -> None:
        """Take it back; its tokens too, or as many of them as are not needed any more."""
        self.sequences -= 1
        self.kv_tokens -= tokens

    def preprocess(self, parts: Sequence[Part]) -> None:
        """Take the parts of one call as they come; the engine learns of them once all are preprocessed."""
        if self._device_preprocesses:
            self.engine.encode(parts)
        else:
            seconds = sum(part.preprocess_s for part in parts)
            self.host.station.add(seconds, partial(self.engine.encode, parts), self._note_preprocess)

    def use(self) -> Use:
        """What it was used for."""
        return Use(
            name=self.name,
            busy_s=sum(self.engine.busy),
            by_stage={stage: spent for stage, spent in zip(STAGES, self.engine.busy, strict=True) if spent},
            peak_kv_tokens=self._peaks[0],
            kv_tokens=self._rooms[0],
            peak_embedding_tokens=max(self._peaks[1], self.pool.peak),
            embedding_tokens=self._rooms[1],
        )
