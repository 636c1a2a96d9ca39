# SPDX-License-Identifier: Apache-2.0
"""A fleet at work on requests: the router, and what goes on between instances. Pure.

The way of a request is that of the real router (media to E, text and handles to P, a KV handle to D):

- At its arrival it is given a prefill instance by policy. If that encodes too, the media go there; otherwise they wait
  for room in the pools of instances that encode and do nothing else (if there are any; of others that encode, if not).
- Encoded, it waits for a place at a prefill instance of the same kind and, where another instance generates, for one
  there too; both are taken at once. Whoever is in front of a queue and finds no place holds up those behind it.
- Embeddings travel to P when it has its place, all in one transfer. Its KV cache travels in chunks while later ones are
  computed, so that only the last one's time is seen. The first token is P's.
- A place for a sequence is its prompt and all it will generate, so that memory never runs out (vLLM takes blocks as
  they are needed, and preempts); a place at P alone is the prompt.
- A stage's overheads are work of one core of the host of the instance that is asked.
"""

from collections.abc import Sequence

from vllm_epd.errors import ConfigError
from vllm_epd.planner.fleet import Fleet
from vllm_epd.planner.profile.costs import transfer_s
from vllm_epd.planner.profile.profile import Link, Profile
from vllm_epd.planner.simulate.building import build
from vllm_epd.planner.simulate.choice import Chooser, degree, line, place
from vllm_epd.planner.simulate.events import Action, Events
from vllm_epd.planner.simulate.instance import Finished, Instance, Trace
from vllm_epd.planner.simulate.jobs import Journey, Part
from vllm_epd.planner.simulate.journeys import could_prefill, journey_of, objection, why_not_prefilled
from vllm_epd.planner.simulate.outcome import Refused
from vllm_epd.planner.workload.requests import Request
from vllm_epd.router.ordering import Ticket
from vllm_epd.types import Role


class FleetRun(Finished):
    """One run.

    Attributes:
        events: its time.
        instances: in the order of the topology.
        refused: requests that can never be served.
        ended: those that have been.
    """

    def __init__(
        self, fleet: Fleet, profile: Profile, *, trace: Trace | None = None, ttft_slo_s: float | None = None
    ) -> None:
        self.events = Events()
        self.instances = build(fleet, profile, self.events, self, trace)
        self.refused: list[Refused] = []
        self.ended: list[Journey] = []
        self._fleet = fleet
        self._profile = profile
        self._ttft_slo_s = ttft_slo_s
        self._link = _link(profile, fleet.tier)
        self._chooser = Chooser(fleet)
        self._lines = {role: line(fleet, role) for role in (Role.ENCODE, Role.PREFILL)}
        self._queued: dict[tuple[Role, Journey], int] = {}

    def arrive(self, request: Request) -> None:
        """A request comes; it is refused if no instance could ever serve it."""
        journey = journey_of(request, self._profile, self._ttft_slo_s)
        encoders, prefills, decodes = (self._able(stage) for stage in Role)
        able = [each for each in prefills if could_prefill(journey, each)]
        why = objection(journey, self._profile.memory.max_context, encoders, decodes)
        if why is not None or not able:
            self.refused.append(Refused(request.number, why or why_not_prefilled(journey, prefills)))
            return
        planned = journey.prefill = self._chooser.pick(Role.PREFILL, able)
        planned.begin(float(journey.prompt))  # counts for those who choose after it
        if journey.parts and not planned.roles.encode:
            self._cut(journey, encoders)
            self._wait(Role.ENCODE, journey)
        else:
            self._wait(Role.PREFILL, journey)

    def encoded(self, instance: Instance, part: Part) -> None:
        """The embedding of a part is there."""
        journey = part.journey
        assert journey is not None
        instance.end(float(part.tokens))
        journey.encoder = instance
        journey.unencoded -= 1
        if not journey.unencoded and instance is not journey.prefill:
            self._wait(Role.PREFILL, journey)

    def prefilled(self, instance: Instance, journey: Journey) -> None:
        """The prompt is in the KV cache; the client has the first token."""
        journey.first_token = self.events.now
        decode = journey.decode
        assert decode is not None
        _drop_media(journey, instance)
        if decode is not instance:
            instance.end(float(journey.prompt))
            instance.rise(journey.prompt)
        if not journey.left:
            self.generated(decode, journey)
        elif decode is instance:
            instance.generate(journey)
        else:
            self._hand_over(decode, journey)
        self._admit()

    def generated(self, instance: Instance, journey: Journey) -> None:
        """The answer is whole."""
        journey.done = self.events.now
        instance.end(_work_of_answer(journey))
        instance.rise(journey.whole)
        self.ended.append(journey)
        self._admit()

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
        work = float(journey.media_tokens if stage is Role.ENCODE else journey.prompt)
        ticket = Ticket(journey.request.at, work, journey.due)
        self._queued[stage, journey] = self._lines[stage].add(ticket, journey, self.events.now)
        self._admit()

    def _admit(self) -> None:
        """Let in who is in front of a queue, as long as there is room."""
        for stage, attempt in ((Role.ENCODE, self._send_media), (Role.PREFILL, self._send_prompt)):
            waiting = self._lines[stage]
            while len(waiting) and attempt(front := waiting.front(self.events.now)):
                waiting.remove(self._queued.pop((stage, front)))

    def _send_media(self, journey: Journey) -> bool:
        """Have the media encoded if the pools have room for all of it, or never will."""
        encoders = self._able(Role.ENCODE)
        found = place(journey.parts, encoders, self._chooser, spread=self._fleet.spread)
        if found is None:
            if any(each.pool.held for each in encoders):
                return False
            self.refused.append(Refused(journey.request.number, "its embeddings do not fit even empty pools together"))
            return True
        for part, instance in zip(journey.parts, found, strict=True):
            self._encode_at(instance, part, journey)
        return True

    def _encode_at(self, instance: Instance, part: Part, journey: Journey) -> None:
        part.journey, part.instance = journey, instance
        instance.pool.take(part.name, part.tokens)
        if part.held:
            self.events.after(0.0, lambda: self.encoded(instance, part))
        else:
            self._call(instance, Role.ENCODE, lambda: instance.preprocess(part))

    def _send_prompt(self, journey: Journey) -> bool:
        """Have the prompt computed, if there is a place for it, and for what it is to generate."""
        planned = journey.prefill
        assert planned is not None
        prefill = self._roomy_prefill(journey, planned)
        if prefill is None:
            return False
        decode = prefill
        if not prefill.roles.decode:
            roomy = [each for each in self._able(Role.DECODE) if each.fits(journey.whole)]
            if not roomy:
                return False
            decode = self._chooser.pick(Role.DECODE, roomy)
            prefill.sit(journey.prompt)
            prefill.begin(float(journey.prompt))
        planned.end(float(journey.prompt))
        journey.prefill, journey.decode = prefill, decode
        decode.sit(journey.whole)
        decode.begin(_work_of_answer(journey))
        self._hand_media(journey, prefill)
        return True

    def _roomy_prefill(self, journey: Journey, planned: Instance) -> Instance | None:
        """The planned instance if it has room, or another one that leads the same way."""
        tokens = journey.whole if planned.roles.decode else journey.prompt
        able = [each for each in self._able(Role.PREFILL) if _leads_the_same_way(each, planned, journey)]
        roomy = [each for each in able if each.fits(tokens) and each.pool.fits(journey.media_tokens)]
        if planned in roomy or not roomy:
            return planned if roomy else None
        return self._chooser.pick(Role.PREFILL, roomy)

    def _hand_media(self, journey: Journey, prefill: Instance) -> None:
        """Bring the embeddings to P, or have P make them; and bring the prompt there."""
        seconds = 0.0
        if journey.unencoded:
            for part in journey.parts:
                prefill.begin(float(part.tokens))
                self._encode_at(prefill, part, journey)
        elif journey.parts:
            prefill.pool.take(None, journey.media_tokens)
            seconds = transfer_s(self._link, journey.media_tokens * self._profile.memory.embedding_per_token)
        self._call(prefill, Role.PREFILL, lambda: self.events.after(seconds, lambda: prefill.compute(journey)))

    def _hand_over(self, decode: Instance, journey: Journey) -> None:
        """Bring the last chunk of the KV cache to D."""
        step = self._fleet.limits.batched_tokens
        last = min(journey.prompt, journey.prompt % step or step)
        seconds = transfer_s(self._link, last * self._profile.memory.kv_per_token)
        self._call(decode, Role.DECODE, lambda: self.events.after(seconds, lambda: decode.generate(journey)))

    def _call(self, instance: Instance, stage: Role, arrived: Action) -> None:
        """Ask an instance for something: HTTP, tokenising and the like, on a core of its host."""
        overhead = self._profile.overhead
        work = overhead.router_s + getattr(overhead, f"{stage.value}_s")
        if work:
            instance.host.cores.start(work, arrived)
        else:
            arrived()

    def _able(self, stage: Role) -> list[Instance]:
        """Instances that may be given work of a stage; for encode those that do nothing else, if there are any."""
        able = [each for each in self.instances if each.takes and stage in each.roles.roles]
        if stage is Role.ENCODE:
            return [each for each in able if not each.roles.language_model] or able
        return able


def _leads_the_same_way(one: Instance, other: Instance, journey: Journey) -> bool:
    encodes = not journey.parts or one.roles.encode == other.roles.encode
    return encodes and one.roles.decode == other.roles.decode


def _drop_media(journey: Journey, prefill: Instance) -> None:
    """The prompt is computed: nobody needs the embeddings for it any more."""
    apart = [part.tokens for part in journey.parts if part.instance is not prefill]
    if apart:
        prefill.pool.drop(None, sum(apart))
    for part in journey.parts:
        assert part.instance is not None
        part.instance.pool.drop(part.name, part.tokens)


def _work_of_answer(journey: Journey) -> float:
    """What an answer is estimated at where it is generated, with the prompt where that is computed there too."""
    return float(journey.request.output_tokens + (journey.prompt if journey.prefill is journey.decode else 0))


def _link(profile: Profile, tier: str) -> Link:
    try:
        return profile.links[tier]
    except KeyError:
        known = ", ".join(profile.links)
        raise ConfigError(f"the profile of {profile.model} has no link {tier!r}; it has {known}") from None
