# SPDX-License-Identifier: Apache-2.0
"""One simulated instance: what it has to do, and one step after the other. Pure.

A step is what vLLM does between two looks at its queues. It encodes up to `Limits.encode_items` parts that are
preprocessed, computes prompts up to `Limits.batched_tokens` and `Limits.prefill_sequences`, and generates a token for
each sequence that is that far. A prompt may be computed in the step that encodes its last part. With `Fleet.chunked`
prompts and generation share a step, and prompts are cut to what fits; otherwise prompts go first and whole, at least
one of them, and generation stands still meanwhile. The time of a step is the sum of what its three parts take, with the
larger one of the bases of prefill and decode, since one pass does both.

As long as there is nothing to encode or to compute, steps are not simulated one by one: so many are taken together as
the sequence with the fewest tokens left takes, by a closed formula; whoever comes meanwhile joins at the end of the
step that is under way then.
"""

from collections import Counter, deque
from collections.abc import Callable

from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.costs import decode_s, encode_s, prefill_pairs, prefill_s
from vllm_epd.planner.profile.memory import Room
from vllm_epd.planner.profile.profile import Profile
from vllm_epd.planner.simulate.generation import Generation
from vllm_epd.planner.simulate.host import Host
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.planner.simulate.pool import Pool
from vllm_epd.types import Role, RoleSet

#: Told of `(name of the instance, what it does, when that began, when it ended)`.
Trace = Callable[[str, str, float, float], None]

PREPROCESS = "preprocess"


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


class Instance:
    """One instance.

    Attributes:
        name: such as `E0`.
        roles: what it does now.
        takes: whether it may be given work.
        room: what it can hold.
        pool: its embeddings.
        host: what it runs on.
        outstanding: parts, prompts and sequences that it has been given and has not done.
        work: what these are estimated at, in tokens.
        kv_tokens: reserved in its KV cache.
        peak_kv_tokens: the most that were.
        sequences: prompts and sequences that have a place.
        busy: seconds in which its device worked, by what on.
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
        self.roles = roles
        self.takes = True
        self.room = room
        self.pool = Pool(room.embedding_tokens)
        self.host = host
        self.outstanding = 0
        self.work = 0.0
        self.kv_tokens = 0
        self.peak_kv_tokens = 0
        self.sequences = 0
        self.busy: Counter[str] = Counter()
        self._limits = fleet.limits
        self._chunked = fleet.chunked
        self._device_preprocesses = fleet.workers_preprocess
        self._profile = profile
        self._events = host.events
        self._worker = host.worker
        self._finished = finished
        self._trace = trace
        self._encoding: deque[Part] = deque()
        self._waiting: deque[Journey] = deque()
        self._decoding: list[Journey] = []
        self._stepping = False
        self._run: Generation | None = None

    @property
    def seats(self) -> int:
        """Prompts or sequences that may have a place: of an instance that only prefills, a batch and the next one."""
        return self._limits.decode_sequences if self.roles.decode else 2 * self._limits.prefill_sequences

    def begin(self, work: float) -> None:
        """Count something that it has been given."""
        self.outstanding += 1
        self.work += work

    def end(self, work: float) -> None:
        """That is done."""
        self.outstanding -= 1
        self.work = self.work - work if self.outstanding else 0.0

    def fits(self, tokens: int) -> bool:
        """Whether there is a place for a sequence with so many tokens in the KV cache."""
        return self.sequences < self.seats and self.kv_tokens + tokens <= self.room.kv_tokens

    def sit(self, tokens: int) -> None:
        """Give a sequence a place."""
        self.sequences += 1
        self.kv_tokens += tokens
        self.peak_kv_tokens = max(self.peak_kv_tokens, self.kv_tokens)

    def rise(self, tokens: int) -> None:
        """Take it back."""
        self.sequences -= 1
        self.kv_tokens -= tokens

    def preprocess(self, part: Part) -> None:
        """Take a part as it comes."""
        if self._device_preprocesses:
            self.encode(part)
        else:
            self.host.station.add(part.preprocess_s, lambda: self.encode(part))

    def encode(self, part: Part) -> None:
        """Take a part that is preprocessed, or that the device preprocesses."""
        self._encoding.append(part)
        self._wake()

    def compute(self, journey: Journey) -> None:
        """Take a prompt; its media may still be in this instance's hands."""
        self._waiting.append(journey)
        self._wake()

    def generate(self, journey: Journey) -> None:
        """Take a sequence whose prompt is in the KV cache."""
        self._decoding.append(journey)
        self._wake()

    def _wake(self) -> None:
        if self._run is not None:
            self._run.cut(self._worker)
        elif not self._stepping:
            self._step()

    def _step(self) -> None:
        parts = self._take_parts()
        chunks = self._take_chunks(parts)
        decoding = self._decoding if self._chunked or not chunks else []
        if not parts and not chunks:
            if decoding:
                self._generate_on()
            return
        seconds = self._seconds(parts, chunks, decoding)
        self._stepping = True
        begun = self._events.now
        self._worker.start(sum(seconds.values()), lambda: self._stepped(begun, seconds, parts, chunks, list(decoding)))

    def _take_parts(self) -> list[Part]:
        """What is encoded in the next step."""
        parts: list[Part] = []
        patches = 0.0
        while self._encoding and len(parts) < self._limits.encode_items:
            patches += self._encoding[0].patches
            if parts and patches > self.room.encode_patches:
                break
            parts.append(self._encoding.popleft())
        return parts

    def _take_chunks(self, parts: list[Part]) -> list[tuple[Journey, int]]:
        """What is computed of which prompt in the next step, which encodes these parts before that."""
        chunks: list[tuple[Journey, int]] = []
        here = Counter(part.journey for part in parts)
        most = min(self._limits.batched_tokens, self.room.step_tokens)
        budget = most - (len(self._decoding) if self._chunked else 0)
        for journey in self._waiting:
            if len(chunks) == self._limits.prefill_sequences or budget <= 0:
                break
            if journey.unencoded > here[journey]:
                continue
            tokens = journey.prompt - journey.computed
            if self._chunked:
                tokens = min(tokens, budget)
            elif tokens > budget and chunks:
                break
            chunks.append((journey, tokens))
            budget -= tokens
        return chunks

    def _seconds(
        self, parts: list[Part], chunks: list[tuple[Journey, int]], decoding: list[Journey]
    ) -> dict[str, float]:
        """What the next step takes, by what for."""
        profile = self._profile
        seconds: dict[str, float] = {}
        if parts:
            if self._device_preprocesses:
                seconds[PREPROCESS] = sum(part.preprocess_s for part in parts)
            patches, pairs = sum(part.patches for part in parts), sum(part.pairs for part in parts)
            seconds[Role.ENCODE.value] = encode_s(profile.encode, patches, pairs)
        if chunks:
            tokens = sum(count for _, count in chunks)
            looked_at = sum(prefill_pairs(count, journey.computed) for journey, count in chunks)
            seconds[Role.PREFILL.value] = prefill_s(profile.prefill, tokens, looked_at)
        if decoding:
            spent = decode_s(profile.decode, len(decoding), _context(decoding))
            if chunks:
                spent -= min(profile.decode.base_s, profile.prefill.base_s)
            seconds[Role.DECODE.value] = spent
        return seconds

    def _stepped(
        self,
        begun: float,
        seconds: dict[str, float],
        parts: list[Part],
        chunks: list[tuple[Journey, int]],
        decoding: list[Journey],
    ) -> None:
        self._note(begun, seconds)
        for part in parts:
            self._finished.encoded(self, part)
        for journey in decoding:
            journey.left -= 1
        ended = [journey for journey in decoding if not journey.left]
        for journey, tokens in chunks:
            journey.computed += tokens
            if journey.computed == journey.prompt:
                self._waiting.remove(journey)
                journey.left -= 1
                self._finished.prefilled(self, journey)
        self._end_sequences(ended)
        self._stepping = False
        self._step()

    def _generate_on(self) -> None:
        """As many steps together as nothing changes in."""
        decoding = self._decoding
        steps = min(journey.left for journey in decoding)
        run = Generation(self._profile.decode, len(decoding), _context(decoding), steps, self._events.now)
        self._run = run
        run.task = self._worker.start(run.seconds(steps), self._generated)

    def _generated(self) -> None:
        run = self._run
        assert run is not None
        self._run = None
        self._stepping = True  # whoever comes in answer to what ends here waits for the next step
        self._note(run.begun, {Role.DECODE.value: run.seconds(run.steps)})
        members = self._decoding[: run.sequences]
        for journey in members:
            journey.left -= run.steps
        self._end_sequences([journey for journey in members if not journey.left])
        self._stepping = False
        self._step()

    def _end_sequences(self, ended: list[Journey]) -> None:
        if not ended:
            return
        self._decoding = [journey for journey in self._decoding if journey.left]
        for journey in ended:
            self._finished.generated(self, journey)

    def _note(self, begun: float, seconds: dict[str, float]) -> None:
        self.busy.update(seconds)
        if self._trace is not None:
            self._trace(self.name, "+".join(seconds), begun, self._events.now)


def _context(decoding: list[Journey]) -> float:
    """Tokens that a step looks at: prompts, and what has been generated."""
    return float(sum(journey.whole - journey.left for journey in decoding))
