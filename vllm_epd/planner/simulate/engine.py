# SPDX-License-Identifier: Apache-2.0
"""What one instance works at, one step after the other. Pure.

A step is what vLLM does between two looks at its queues, whatever the roles of the instance:

- it encodes parts that are preprocessed, up to `Limits.encode_items` and what working memory has room for;
- it generates a token for each sequence that is that far;
- it computes prompts whose embeddings are there, or are made in this very step, up to `Limits.prefill_sequences` of
  them and, with the tokens that are generated, `Limits.batched_tokens`. The last one is cut to what fits.

It takes the sum of what these take, with the larger one of the bases of prefill and decode, since one pass does both.
Where the worker of a device preprocesses, its parts' preprocessing is added, one after the other. Without
`Fleet.chunked`, prompts go first and whole, at least one of them, and generation stands still in a step that has any.

As long as there is nothing to encode or to compute, steps are not simulated one by one (`generation`); whoever comes
meanwhile joins at the end of the step that is under way then. Where instances are processes on cores, the tokens of a
step are sent out while the next one is under way (`Overhead.token_s`): the step then weighs as much more on the cores.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.costs import encode_s, prefill_pairs, prefill_s
from vllm_epd.planner.profile.memory import Room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.events import Task
from vllm_epd.planner.simulate.generation import Generation
from vllm_epd.planner.simulate.host import Host
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.types import Role, RoleSet

if TYPE_CHECKING:
    from vllm_epd.planner.simulate.instance import Instance

#: Told of `(name of the instance, what it does, when that began, when it ended)`.
Trace = Callable[[str, str, float, float], None]

PREPROCESS = "preprocess"
STAGES = (PREPROCESS, *(role.value for role in Role))
"""What a device works at, in the order of a step."""


class Finished:
    """Is told of work that an instance has done."""

    def encoded(self, instance: "Instance", part: Part) -> None:
        """The embedding of a part is there."""
        raise NotImplementedError

    def prefilled(self, instance: "Instance", journey: Journey) -> None:
        """A prompt is in the KV cache, and its first token is there."""
        raise NotImplementedError

    def generated(self, instance: "Instance", journey: Journey) -> None:
        """The last token of an answer is there."""
        raise NotImplementedError


class Engine:
    """The steps of one instance.

    Attributes:
        limits: on a step.
        room: of the instance, in its present roles.
        busy: seconds in which its device worked, by `STAGES`.
    """

    def __init__(
        self, instance: "Instance", fleet: Fleet, profile: Profile, host: Host, finished: Finished, trace: Trace | None
    ) -> None:
        self.limits = fleet.limits
        self.room = Room(0, 0, 0, 0)
        self.busy = [0.0] * len(STAGES)
        self._instance = instance
        self._chunked = fleet.chunked
        self._preprocesses = fleet.workers_preprocess
        self._profile = profile
        self._token_s = profile.overhead.token_s
        self._events = host.events
        self._worker = host.worker
        self._finished = finished
        self._trace = trace
        self._encoding: deque[Part] = deque()
        self._waiting: deque[Journey] = deque()
        self._joining: list[Journey] = []
        self._generation = Generation(profile.decode)
        self._working = False
        self._task: Task | None = None
        self._begun = 0.0
        self._parts: list[Part] = []
        self._chunks: list[tuple[Journey, int]] = []
        self._steps = 0
        self._seconds = (0.0,) * len(STAGES)

    def become(self, roles: RoleSet, room: Room) -> None:
        """Take up roles, with nothing to do; where others prefill, each step of decode takes `step_s` longer."""
        cost, added = self._profile.decode, self._profile.overhead.step_s
        apart = roles.decode and not roles.prefill
        self._generation = Generation(replace(cost, base_s=cost.base_s + added) if apart else cost)
        self.room = room

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not (self._working or self._encoding or self._waiting or self._joining)

    def encode(self, parts: Sequence[Part]) -> None:
        """Take parts that are preprocessed, or that the device preprocesses."""
        self._encoding.extend(parts)
        self.wake()

    def compute(self, journey: Journey) -> None:
        """Take a prompt; its media may still be in the hands of this instance."""
        self._waiting.append(journey)
        self.wake()

    def generate(self, journey: Journey) -> None:
        """Take a sequence whose prompt is in the KV cache."""
        self._joining.append(journey)
        self.wake()

    def wake(self) -> None:
        """Look what there is to do."""
        if not self._working:
            self._step()
        elif self._steps > 1 and self._task is not None:
            steps = self._generation.begun_after(self._worker.progress(self._task), self._steps)
            if steps < self._steps:
                self._steps = steps
                self._worker.cut(self._task, self._generation.seconds(steps))

    def _step(self) -> None:
        generation = self._generation
        if self._joining:
            for journey in self._joining:
                generation.join(journey)
            self._joining = []
        if self._encoding:
            self._parts = self._take_parts()
        if self._waiting:
            self._chunks = self._take_chunks()
        if self._parts or self._chunks:
            self._start_mixed()
        elif generation.sequences:
            self._steps = generation.until_next_end()
            self._start(generation.seconds(self._steps), generation.sequences * self._steps)

    def _take_parts(self) -> list[Part]:
        """What is encoded in the next step."""
        parts: list[Part] = []
        patches = 0.0
        while self._encoding and len(parts) < self.limits.encode_items:
            patches += self._encoding[0].patches
            if parts and patches > self.room.encode_patches:
                break
            parts.append(self._encoding.popleft())
        return parts

    def _take_chunks(self) -> list[tuple[Journey, int]]:
        """What is computed of which prompt in the next step, which encodes its parts before that."""
        chunks: list[tuple[Journey, int]] = []
        budget = min(self.limits.batched_tokens, self.room.step_tokens)
        if self._chunked:
            budget -= self._generation.sequences
        for journey in self._waiting:
            if len(chunks) == self.limits.prefill_sequences or budget <= 0:
                break
            if journey.unencoded and journey.unencoded > sum(part.journey is journey for part in self._parts):
                continue
            tokens = journey.prompt - journey.computed
            if self._chunked:
                tokens = min(tokens, budget)
            elif tokens > budget and chunks:
                break
            chunks.append((journey, tokens))
            budget -= tokens
        return chunks

    def _start_mixed(self) -> None:
        """A step that does more than to generate."""
        profile, generation = self._profile, self._generation
        preprocess = encode = prefill = decode = 0.0
        sent = 0
        if self._parts:
            if self._preprocesses:
                preprocess = sum(part.preprocess_s for part in self._parts)
            patches, pairs = sum(part.patches for part in self._parts), sum(part.pairs for part in self._parts)
            encode = encode_s(profile.encode, patches, pairs)
        if self._chunks:
            tokens, looked_at = 0, 0.0
            for journey, count in self._chunks:
                tokens += count
                looked_at += prefill_pairs(count, journey.computed)
                sent += journey.computed + count == journey.prompt
            prefill = prefill_s(profile.prefill, tokens, looked_at)
        if generation.sequences and (self._chunked or not self._chunks):
            self._steps = 1
            sent += generation.sequences
            decode = generation.seconds(1)
            if self._chunks:
                decode -= min(profile.decode.base_s, profile.prefill.base_s)
        self._seconds = (preprocess, encode, prefill, decode)
        self._start(preprocess + encode + prefill + decode, sent)

    def _start(self, seconds: float, sent: int) -> None:
        self._working = True
        self._begun = self._events.now
        weight = 1.0 + self._token_s * sent / seconds if seconds else 1.0
        self._task = self._worker.start(seconds, self._end, weight)

    def _end(self) -> None:
        """A step, or several, are over; whoever comes in answer to what ends here waits for the next one."""
        self._note()
        self._task = None
        steps, parts, chunks = self._steps, self._parts, self._chunks
        self._steps = 0
        if parts:
            self._parts = []
            for part in parts:
                self._finished.encoded(self._instance, part)
        ended = self._generation.advance(steps) if steps else []
        if chunks:
            self._chunks = []
            for journey, tokens in chunks:
                journey.computed += tokens
                if journey.computed == journey.prompt:
                    self._waiting.remove(journey)
                    self._finished.prefilled(self._instance, journey)
        for journey in ended:
            self._finished.generated(self._instance, journey)
        self._working = False
        self._step()

    def _note(self) -> None:
        """Count the time that has passed for what it was spent on."""
        now, begun = self._events.now, self._begun
        if not (self._parts or self._chunks):
            self.busy[-1] += now - begun
            if self._trace is not None:
                self._trace(self._instance.name, STAGES[-1], begun, now)
            return
        total = sum(self._seconds)
        for index, part in enumerate(self._seconds):
            if part:
                spent = (now - self._begun) * part / total
                self.busy[index] += spent
                if self._trace is not None:
                    self._trace(self._instance.name, STAGES[index], begun, begun + spent)
                begun += spent
