# SPDX-License-Identifier: Apache-2.0
"""A fleet at work on requests: the router, and what goes on between instances. Pure.

The way of a request is that of the real router (media to E, text and handles to P, a KV handle to D):

- At its arrival it is given a prefill instance by policy. If that encodes too, the media go there; otherwise they wait
  for room in the pools of instances that encode and do nothing else (if there are any; of others that encode, if not).
- What an encoder holds, or is making for another request, is not encoded again; a request waits for what is being made.
- Encoded, it waits for a place at a prefill instance of the same kind and, where another instance generates, for one
  there too; both are taken at once. Whoever is in front of a queue and finds no place holds up those behind it.
- Embeddings travel to P when it has its place, all in one transfer, and have room there and in the pool of E until the
  prompt is prefilled. The KV cache travels in chunks while later ones are computed, so that only the last one's time is
  seen, and has room at P until D has it. The first token is P's. Transfers do not slow each other down.
- With `Fleet.pulls`, D is chosen when the prompt is prefilled, and all of the KV cache travels then.
- A place for a sequence is its prompt and all it will generate, so that memory never runs out (vLLM takes blocks as
  they are needed, and preempts); a place at P alone is the prompt.
- A stage's overheads are work of the API server of the instance that is asked, which takes up calls and preprocesses
  media one after the other, on a core of its host. An instance that encodes for itself is asked once, with all media,
  and begins to encode once all of that is preprocessed.
"""

from collections.abc import Sequence
from functools import partial

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.costs import transfer_s
from vllm_epd.planner.profile.profile import Link, Profile
from vllm_epd.planner.simulate.building import build
from vllm_epd.planner.simulate.choice import chooser, degree, line, place
from vllm_epd.planner.simulate.engine import Finished, Trace
from vllm_epd.planner.simulate.events import Action, Events
from vllm_epd.planner.simulate.instance import Instance
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.planner.simulate.journeys import Bounds, could_prefill, journey_of, objection, why_not_prefilled
from vllm_epd.planner.simulate.outcome import Refused
from vllm_epd.planner.workload.requests import Request
from vllm_epd.router.ordering import Ticket
from vllm_epd.types import Role, RoleSet

TRANSFER = "transfer"


class FleetRun(Finished):
    """One run.

    Attributes:
        events: its time.
        instances: in the order of the topology.
        refused: requests that can never be served.
        ended: those that have been.
        noticed: called whenever something may have become free.
        short_of: the stage for which the request in front of a stage's queue found no place when it last tried.
    """

    def __init__(
        self, fleet: Fleet, profile: Profile, *, trace: Trace | None = None, ttft_slo_s: float | None = None
    ) -> None:
        self.events = Events()
        self.instances = build(fleet, profile, self.events, self, trace)
        self.refused: list[Refused] = []
        self.ended: list[Journey] = []
        self.noticed: Action = _nothing
        self.short_of = {role: role for role in Role}
        self._fleet = fleet
        self._profile = profile
        self._trace = trace
        self._ttft_slo_s = ttft_slo_s
        self._link = _link(profile, fleet.tier)
        self._chooser = chooser(fleet)
        self._lines = {role: line(fleet, role) for role in Role}
        self._attempts = {Role.ENCODE: self._send_media, Role.PREFILL: self._send_prompt, Role.DECODE: self._send_kv}
        self._queued: dict[tuple[Role, Journey], int] = {}
        self._making: dict[tuple[Instance, object], list[Part]] = {}
        self._able: dict[Role, list[Instance]] = {}
        self.who_takes_what()

    def who_takes_what(self) -> None:
        """Look who may be given work of which stage, after roles have changed.

        Encoding goes to those that do nothing else, if there are any; a KV cache to those that do not prefill; and
        prompts to those that generate themselves or have somebody who does.
        """
        able = {role: [each for each in self.instances if each.takes and role in each.roles.roles] for role in Role}
        pure = [each for each in able[Role.ENCODE] if not each.roles.language_model]
        able[Role.ENCODE] = pure or able[Role.ENCODE]
        able[Role.DECODE] = [each for each in able[Role.DECODE] if not each.roles.prefill]
        if not able[Role.DECODE]:
            able[Role.PREFILL] = [each for each in able[Role.PREFILL] if each.roles.decode]
        self._able = able
        self._bounds = Bounds.of(self._profile.memory.max_context, able[Role.ENCODE])
        kinds: dict[RoleSet, list[Instance]] = {}
        for each in able[Role.PREFILL]:
            kinds.setdefault(each.roles, []).append(each)
        self._kinds = list(kinds.values())
        self._admit()

    def waiting(self, stage: Role) -> int:
        """How many requests wait for a place at instances of a stage."""
        return sum(len(self._lines[role]) for role in Role if self.short_of[role] is stage)

    def arrive(self, request: Request) -> None:
        """A request comes; it is refused if no instance could ever serve it."""
        journey = journey_of(request, self._profile, self._ttft_slo_s)
        why = objection(journey, self._bounds)
        decodes = self._able[Role.DECODE]
        kinds = [each for each in self._kinds if could_prefill(journey, each[0], decodes, self._fleet)]
        if why is not None or not kinds:
            why = why or why_not_prefilled(journey, self._able[Role.PREFILL], decodes, self._fleet)
            self.refused.append(Refused(request.number, why))
            return
        able = kinds[0] if len(kinds) == 1 else [each for kind in kinds for each in kind]
        planned = journey.prefill = self._chooser.pick(Role.PREFILL, able)
        journey.way = planned.roles.encode and bool(journey.parts), planned.roles.decode
        planned.begin(float(journey.prompt))  # counts for those who choose after it
        if journey.parts and not planned.roles.encode:
            self._cut(journey, self._able[Role.ENCODE])
            self._wait(Role.ENCODE, journey)
        else:
            self._wait(Role.PREFILL, journey)

    def encoded(self, instance: Instance, part: Part) -> None:
        """The embedding of a part is there, for all that have asked for it."""
        waiting = self._making.pop((instance, part.name), ()) if part.name is not None else ()
        for each in (part, *waiting):
            journey = each.journey
            assert journey is not None
            instance.end(float(each.tokens))
            journey.encoder = instance
            journey.unencoded -= 1
            if journey.unencoded:
                continue
            if journey.way[0]:
                instance.engine.wake()
            else:
                self._wait(Role.PREFILL, journey)

    def prefilled(self, instance: Instance, journey: Journey) -> None:
        """The prompt is in the KV cache; the client has the first token."""
        journey.first_token = self.events.now
        decode = journey.decode
        _drop_media(journey, instance)
        if decode is instance:
            if journey.output == 1:
                self.generated(decode, journey)
            else:
                instance.engine.generate(journey)
        else:
            instance.end(float(journey.prompt))
            instance.rise(0)
            if journey.output == 1:
                instance.kv_tokens -= journey.prompt
                if decode is None:
                    self._end(journey, instance)
                else:
                    self.generated(decode, journey)
            elif decode is None:
                self._wait(Role.DECODE, journey)
            else:
                self._hand_over(journey, instance, decode, self._last_chunk(journey))
        self._admit()

    def generated(self, instance: Instance, journey: Journey) -> None:
        """The answer is whole."""
        instance.end(_work_of_answer(journey))
        instance.rise(journey.whole)
        self._end(journey, instance)
        self._admit()

    def close(self) -> None:
        """Nothing happens any more; those that still wait have nobody left who could take them."""
        left = sorted({journey.request.number for _, journey in self._queued})
        self.refused += [Refused(number, "no instance was left that could have taken it") for number in left]

    def _end(self, journey: Journey, decode: Instance) -> None:
        journey.decode = decode
        journey.done = self.events.now
        self.ended.append(journey)

    def _cut(self, journey: Journey, encoders: Sequence[Instance]) -> None:
        """Have large items encoded by several encoders."""
        idle, among = sum(not each.outstanding for each in encoders), len(journey.parts)
        cut: list[Part] = []
        for part in journey.parts:
            known = any(each.pool.has(part.name) for each in encoders)
            count = 1 if known else degree(part, idle, len(encoders), among, self._fleet.irp_degree)
            cut += part.shards(count)
        journey.parts = cut
        journey.unencoded = len(cut)

    def _wait(self, stage: Role, journey: Journey) -> None:
        waiting, now = self._lines[stage], self.events.now
        if not len(waiting) and self._attempts[stage](journey):
            return
        work = float(journey.media_tokens if stage is Role.ENCODE else journey.prompt)
        ticket = Ticket(journey.request.at, work, journey.due)
        self._queued[stage, journey] = waiting.add(ticket, journey, now)
        if len(waiting) > 1 and waiting.front(now) is journey:
            self._admit()  # there may be room for it, if not for the one that was in front

    def _admit(self) -> None:
        """Let in who is in front of a queue, as long as there is room."""
        for stage, waiting in self._lines.items():
            while len(waiting) and self._attempts[stage](front := waiting.front(self.events.now)):
                waiting.remove(self._queued.pop((stage, front)))
        self.noticed()

    def _send_media(self, journey: Journey) -> bool:
        """Have the media encoded if the pools have room for all of it, or never will."""
        encoders = self._able[Role.ENCODE]
        found = place(journey.parts, encoders, self._chooser, spread=self._fleet.spread)
        if found is None:
            if any(each.pool.held for each in encoders):
                return False
            self.refused.append(Refused(journey.request.number, "its embeddings do not fit even empty pools together"))
            assert journey.prefill is not None
            journey.prefill.end(float(journey.prompt))
            return True
        for part, instance in zip(journey.parts, found, strict=True):
            self._hold(instance, part, journey)
            if part.held:
                self._await_embedding(instance, part)
            else:
                self._call(instance, Role.ENCODE, partial(instance.preprocess, (part,)))
        return True

    def _hold(self, instance: Instance, part: Part, journey: Journey) -> None:
        """Take room for an embedding, and see whether somebody has to make it."""
        part.journey, part.instance = journey, instance
        part.held = instance.pool.has(part.name)
        instance.pool.take(part.name, part.tokens)
        if part.name is not None and not part.held:
            self._making[instance, part.name] = []

    def _await_embedding(self, instance: Instance, part: Part) -> None:
        """Have an embedding that is there, or wait for whoever has asked for it."""
        if (instance, part.name) in self._making:
            self._making[instance, part.name].append(part)
        else:
            self.events.after(0.0, partial(self.encoded, instance, part))

    def _send_prompt(self, journey: Journey) -> bool:
        """Have the prompt computed, if there is a place for it, and for what it is to generate."""
        planned = journey.prefill
        assert planned is not None
        prefill = self._roomy_prefill(journey, planned)
        if prefill is None:
            self.short_of[Role.PREFILL] = Role.PREFILL
            return False
        decode: Instance | None = prefill
        if not prefill.roles.decode:
            decode = None
            if not self._fleet.pulls and not (decode := self._roomy_decode(journey)):
                self.short_of[Role.PREFILL] = Role.DECODE
                return False
            prefill.sit(journey.prompt)
            prefill.begin(float(journey.prompt))
        planned.end(float(journey.prompt))
        journey.prefill, journey.decode = prefill, decode
        if decode is not None:
            self._seat_to_decode(journey, decode)
        self._hand_media(journey, prefill)
        return True

    def _send_kv(self, journey: Journey) -> bool:
        """Have the answer generated, of a prompt that is prefilled."""
        decode = self._roomy_decode(journey)
        if decode is None:
            return False
        journey.decode = decode
        self._seat_to_decode(journey, decode)
        assert journey.prefill is not None
        self._hand_over(journey, journey.prefill, decode, journey.prompt)
        return True

    def _roomy_prefill(self, journey: Journey, planned: Instance) -> Instance | None:
        """The planned instance if it has room, or another one that leads the same way."""
        if planned.takes and _could_take(planned, journey):
            return planned
        roomy = [each for each in self._able[Role.PREFILL] if _could_take(each, journey)]
        return self._chooser.pick(Role.PREFILL, roomy) if roomy else None

    def _roomy_decode(self, journey: Journey) -> Instance | None:
        roomy = [each for each in self._able[Role.DECODE] if each.fits(journey.whole)]
        return self._chooser.pick(Role.DECODE, roomy) if roomy else None

    def _seat_to_decode(self, journey: Journey, decode: Instance) -> None:
        decode.sit(journey.whole)
        decode.begin(_work_of_answer(journey))

    def _hand_media(self, journey: Journey, prefill: Instance) -> None:
        """Bring the embeddings to P, or have P make them; and bring the prompt there."""
        compute = partial(prefill.engine.compute, journey)
        if journey.unencoded:
            for part in journey.parts:
                prefill.begin(float(part.tokens))
                self._hold(prefill, part, journey)
            compute = partial(self._take_up, prefill, journey)
        elif journey.parts:
            prefill.pool.take(None, journey.media_tokens)
            nbytes = journey.media_tokens * self._profile.memory.embedding_per_token
            compute = partial(self._transfer, prefill, transfer_s(self._link, nbytes), compute)
        self._call(prefill, Role.PREFILL, compute)

    def _take_up(self, prefill: Instance, journey: Journey) -> None:
        """Have an instance that encodes for itself begin with a request, all of whose media comes with one call."""
        if fresh := [part for part in journey.parts if not part.held]:
            prefill.preprocess(fresh)
        for part in journey.parts:
            if part.held:
                self._await_embedding(prefill, part)
        prefill.engine.compute(journey)

    def _last_chunk(self, journey: Journey) -> int:
        """Tokens of the last chunk of a prompt."""
        step = self._fleet.limits.batched_tokens
        return min(journey.prompt, journey.prompt % step or step)

    def _hand_over(self, journey: Journey, prefill: Instance, decode: Instance, tokens: int) -> None:
        """Bring so much of the KV cache to D as is not there yet."""

        def arrived() -> None:
            prefill.kv_tokens -= journey.prompt
            decode.engine.generate(journey)
            self._admit()

        seconds = transfer_s(self._link, tokens * self._profile.memory.kv_per_token)
        self._call(decode, Role.DECODE, partial(self._transfer, decode, seconds, arrived))

    def _transfer(self, to: Instance, seconds: float, arrived: Action) -> None:
        if self._trace is not None:
            self._trace(to.name, TRANSFER, self.events.now, self.events.now + seconds)
        self.events.after(seconds, arrived)

    def _call(self, instance: Instance, stage: Role, arrived: Action) -> None:
        """Ask an instance for something: HTTP, tokenising and the like, by its API server."""
        overhead = self._profile.overhead
        work = overhead.router_s + getattr(overhead, f"{stage.value}_s")
        if overhead.beside_s and self._profile.hardware.device == "cpu":
            instance.host.cores.start(overhead.beside_s, _nothing)
        if work:
            instance.host.station.add(work, arrived)
        else:
            arrived()


def _nothing() -> None:
    """Nobody waits for it."""


def _could_take(prefill: Instance, journey: Journey) -> bool:
    """Whether an instance leads the way that was planned, and has room."""
    roles, (encodes, decodes) = prefill.roles, journey.way
    return (
        roles.prefill
        and roles.decode == decodes
        and (not journey.parts or roles.encode == encodes)
        and prefill.fits(journey.whole if decodes else journey.prompt)
        and prefill.pool.fits(journey.media_tokens)
    )


def _drop_media(journey: Journey, prefill: Instance) -> None:
    """The prompt is computed: nobody needs the embeddings for it any more."""
    if not journey.parts:
        return
    if not journey.way[0]:
        prefill.pool.drop(None, journey.media_tokens)
    for part in journey.parts:
        assert part.instance is not None
        part.instance.pool.drop(part.name, part.tokens)


def _work_of_answer(journey: Journey) -> float:
    """What an answer is estimated at where it is generated, with the prompt where that is computed there too."""
    return float(journey.output + (journey.prompt if journey.prefill is journey.decode else 0))


def _link(profile: Profile, tier: str) -> Link:
    try:
        return profile.links[tier]
    except KeyError:
        known = ", ".join(profile.links)
        raise ConfigError(f"the profile of {profile.model} has no link {tier!r}; it has {known}") from None
