# SPDX-License-Identifier: Apache-2.0
"""What the steps of one request share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from vllm_epd.router.client import InstanceClient
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.encoders import Encoders
from vllm_epd.router.holds import Leases
from vllm_epd.router.instances import Instance, InstanceRegistry
from vllm_epd.router.jsonio import JsonObject
from vllm_epd.router.media import EncodedItem
from vllm_epd.router.metrics import Metrics
from vllm_epd.router.offers import KvClient, Offer
from vllm_epd.router.plan import Route, peers, serving
from vllm_epd.router.policies import Policy
from vllm_epd.router.requests import Branch, ClientRequest, without_media
from vllm_epd.router.sinks import Sink
from vllm_epd.types import Role


class Chooser:
    """Applies a policy to instances and counts its turns, stage by stage."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._turns: Counter[Role] = Counter()

    def pick(self, stage: Role, candidates: Sequence[Instance]) -> Instance:
        """Choose one of at least one candidate; count it as busy before anything else is awaited."""
        turn = self._turns[stage]
        self._turns[stage] += 1
        return candidates[self._policy([each.outstanding for each in candidates], turn)]


@dataclass(frozen=True, slots=True)
class Services:
    """What all requests of a router share."""

    config: RouterConfig
    registry: InstanceRegistry
    client: InstanceClient
    chooser: Chooser
    metrics: Metrics
    encoders: Encoders
    kv: KvClient


@dataclass(slots=True)
class RequestContext:
    """One request on its way, or one branch of it. Each step reads what earlier ones have left here.

    Attributes:
        services: what all requests share.
        request: what the client asks for.
        request_id: the client's, or ours; instances are told it with a suffix for the stage.
        headers: headers of the client that instances get too.
        sink: where the answer goes.
        branch: which prompt and choice this is about.
        route: the way, once planned.
        items: the encoded media, by their place among the media parts.
        leases: what keeps their embeddings until they are prefilled.
        offer: the KV cache that P is asked to offer over our own connector.
        kv: where the KV cache of the prompt lies, once prefilled for another instance.
        resumes: the first token is P's, and the instance that decodes goes on from it.
        answered: the sink has the whole answer.
        hold: what is counted as busy on behalf of this request before its calls are made.
    """

    services: Services
    request: ClientRequest
    request_id: str
    headers: Mapping[str, str]
    sink: Sink
    branch: Branch = field(default_factory=Branch)
    route: Route | None = None
    items: dict[int, EncodedItem] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    offer: Offer | None = None
    kv: JsonObject | None = None
    resumes: bool = False
    answered: bool = False
    hold: ExitStack = field(default_factory=ExitStack)

    @property
    def planned(self) -> Route:
        """The way; only after it has been planned."""
        if self.route is None:
            raise RuntimeError("the request has no route yet")
        return self.route

    @property
    def encoded(self) -> list[EncodedItem] | None:
        """All media in order; None while one is not encoded yet."""
        media = range(len(self.request.media))
        return [self.items[place] for place in media] if len(self.items) == len(media) else None

    def forget_media(self) -> None:
        """Let go of the media once all of it is encoded."""
        if (items := self.encoded) is not None:
            self.request = without_media(self.request, items)

    def close_offer(self) -> None:
        """Have D forget what it was told to expect; nothing if it was told nothing."""
        if self.offer is not None:
            self.offer.close()

    def forget_body(self) -> None:
        """Let go of the client's body once the last instance has it."""
        self.request = replace(self.request, raw=b"", body={}, media=())

    def serving(self) -> tuple[Instance, ...]:
        """The instances that may be given work and serve the model."""
        return serving(self.services.registry.available(), self.request.model)

    def peers(self, stage: Role) -> tuple[Instance, ...]:
        """The instances that may serve a stage of the planned way."""
        return peers(self.serving(), self.planned, stage)

    def pick(self, stage: Role) -> Instance:
        """Choose an instance for a stage of the planned way."""
        return self.services.chooser.pick(stage, self.peers(stage))

    def headers_for(self, suffix: str = "") -> dict[str, str]:
        """The headers of one call to an instance."""
        return {**self.headers, "X-Request-Id": self.request_id + suffix}
