# SPDX-License-Identifier: Apache-2.0
"""What the steps of one request share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct, field
from msgspec.structs import replace

from vllm_epd.errors import UpstreamError
from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.deadlines import Deadline
from vllm_epd.router.demand import Demand
from vllm_epd.router.encoders import Encoders
from vllm_epd.router.failures import UnreachableError
from vllm_epd.router.first_token import RESUME
from vllm_epd.router.holds import Leases
from vllm_epd.router.inline import NOTHING
from vllm_epd.router.instances import Instance, InstanceRegistry
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.metrics import Metrics
from vllm_epd.router.offers import KvClient, Offer
from vllm_epd.router.opening import Opening
from vllm_epd.router.plan import Fleet, Route, serving
from vllm_epd.router.record import REQUEST_ID_HEADER, Record
from vllm_epd.router.recovery import Recovery
from vllm_epd.router.requests import Branch, ClientRequest, without_media
from vllm_epd.router.scheduling import Scheduling
from vllm_epd.router.seats import Counted
from vllm_epd.router.sinks import Sink
from vllm_epd.router.transcript import Transcript
from vllm_epd.types import Role


@dataclass(frozen=True, slots=True)
class Services:
    """What all requests of a router share."""

    config: RouterConfig
    registry: InstanceRegistry
    client: InstanceClient
    scheduling: Scheduling
    metrics: Metrics
    encoders: Encoders
    kv: KvClient
    recovery: Recovery


class RequestContext(Struct):
    """One request on its way, or one branch of it. Each step reads what earlier ones have left here.

    Attributes:
        services: what all requests share.
        request: what the client asks for.
        request_id: the client's, or ours; instances are told it with a suffix for the stage.
        headers: headers of the client that instances get too.
        sink: where the answer goes.
        record: what is noted of it; that of the whole request, for its branches too.
        branch: which prompt and choice this is about.
        deadline: when it came, and until when it is wanted.
        demand: what it is estimated at; measured while its media is at hand.
        route: the way, once planned.
        items: the encoded media, by their place among the media parts.
        leases: what keeps their embeddings until they are prefilled.
        offer: the KV cache that P is asked to offer over our own connector.
        kv: where the KV cache of the prompt lies, once prefilled for another instance.
        opening: P's first token, where the instance that decodes goes on from it.
        transcript: what the client has of a stream that another instance could go on with.
        answered: the sink has the whole answer.
        hold: what is counted as busy on behalf of this request before its calls are made.
        original: the request with all its data, to start over with; None where there was no room to keep it.
        working: the instance that prefills or decodes at the moment.
        failed: the instances that have failed at this request.
    """

    services: Services
    request: ClientRequest
    request_id: str
    headers: Mapping[str, str]
    sink: Sink
    record: Record = field(default_factory=Record)
    branch: Branch = field(default_factory=Branch)
    deadline: Deadline = field(default_factory=Deadline)
    demand: Demand = field(default_factory=Demand)
    route: Route | None = None
    items: dict[int, EncodedItem] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    offer: Offer | None = None
    kv: JsonObject | None = None
    opening: Opening | None = None
    transcript: Transcript | None = None
    answered: bool = False
    hold: Counted = field(default_factory=Counted)
    original: ClientRequest | None = None
    working: Instance | None = None
    failed: set[Instance] = field(default_factory=set)

    @property
    def planned(self) -> Route:
        """The way; only after it has been planned."""
        if self.route is None:
            raise RuntimeError("the request has no route yet")
        return self.route

    @property
    def encoded(self) -> list[EncodedItem] | None:
        """All media in order; None while one is not encoded yet."""
        count = len(self.request.media)
        return [self.items[place] for place in range(count)] if len(self.items) == count else None

    def forget_media(self) -> None:
        """Let go of the media once all of it is encoded."""
        if self.request.raw and self.request.media and (items := self.encoded) is not None:
            self.request = without_media(self.request, items)

    @property
    def sent(self) -> Sequence[int]:
        """Tokens of the answer from which the next instance goes on, instead of generating them."""
        if self.transcript is not None:
            return self.transcript.tokens
        return () if self.opening is None else (self.opening.token,)

    def turn_to(self, stage: Role, instance: Instance) -> None:
        """An instance is to prefill or decode."""
        self.working = instance
        self.record.asked(stage, instance.name)

    def note_failure(self, error: UpstreamError) -> bool:
        """Remember who failed; whether the request could be tried again as far as it knows itself."""
        if isinstance(error, UnreachableError):
            self.services.registry.suspend(error.instance)
        elif self.working is not None:
            self.failed.add(self.working)
        if self.sink.started and (self.transcript is None or self.transcript.finished):
            return False
        return isinstance(error, UnreachableError) or bool(self.original) or bool(self.request.body)

    def start_over(self, error: UpstreamError) -> None:
        """Forget what the attempt has come to, but for what the client has of the answer.

        An instance that could not be reached has taken nothing of what it was to work with.
        """
        if isinstance(error, UnreachableError):
            return
        self.close_offer()
        self.offer, self.kv = None, None
        if not self.sink.started:
            self.opening, self.transcript = None, None
        elif self.transcript is not None:
            self.transcript.go_on()
        if self.original is not None:
            self.leases.abandon(self.services.encoders.leases.release)
            self.leases = Leases()
            self.request = self.original
            self.items.clear()

    def let_go(self) -> None:
        """The request is over, however it ended: give back what is held for it."""
        self.leases.abandon(self.services.encoders.leases.release)
        self.close_offer()

    def close_offer(self) -> None:
        """Have D forget what it was told to expect; nothing if it was told nothing."""
        if self.offer is not None:
            self.offer.close()

    def forget_body(self) -> None:
        """Let go of the client's body once the last instance has it; what is kept to start over stays."""
        self.request = replace(self.request, raw=b"", body={}, media=(), inline=NOTHING)

    @property
    def fleet(self) -> Fleet:
        """The instances that may be given work and serve the model, and can go on from what was sent."""
        return self.services.registry.derived((self.request.model, bool(self.sent)), self._fleet)

    def peers(self, stage: Role) -> tuple[Instance, ...]:
        """The instances that may serve a stage of the planned way."""
        return self.fleet.peers(self.planned, stage)

    def _fleet(self) -> Fleet:
        found = serving(self.services.registry.available(), self.request.model)
        if not self.sent:
            return Fleet(found)
        return Fleet(
            tuple(each for each in found if each.info.limits.get(RESUME) or not each.info.roles.language_model)
        )

    def well(self, stage: Role, candidates: Sequence[Instance]) -> Sequence[Instance]:
        """Those of some instances that work well, if there are any; otherwise all of them."""
        if len(candidates) == 1:
            return candidates
        well = [each for each in candidates if each.breaker.allows]
        if stage is Role.DECODE and self.planned.splits:
            allows = self.services.recovery.pairs.allows
            well = [each for each in well if allows(self.planned.prefill, each)]
        return [each for each in well if each not in self.failed] or well or candidates

    def time_for(self, stage: Role) -> float:
        """How long a call to an instance may take.

        Raises:
            TooLateError: the request's own time is over.
        """
        return self.deadline.left_s(self.services.scheduling.clock(), self.services.config.timeouts.of(stage))

    def headers_for(self, suffix: str = "") -> dict[str, str]:
        """The headers of one call to an instance."""
        return {**self.headers, REQUEST_ID_HEADER: self.request_id + suffix}
