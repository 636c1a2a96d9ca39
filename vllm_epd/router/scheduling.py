# SPDX-License-Identifier: Apache-2.0
"""What all requests of a router share about whose turn it is, and where. No I/O; the clock is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm_epd.router.admission import StageQueue
from vllm_epd.router.choosing import Chooser
from vllm_epd.router.config import RouterConfig
from vllm_epd.router.costs import Means
from vllm_epd.router.instances import InstanceRegistry
from vllm_epd.router.ordering import order_named
from vllm_epd.router.policies import policy_named
from vllm_epd.router.prefixes import Holders, holder
from vllm_epd.router.rates import Pace
from vllm_epd.types import Role


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Queues, and what is known of costs and of caches.

    Attributes:
        clock: the time of arrivals and deadlines, in seconds.
        chooser: the policies.
        queues: the requests that wait, by stage. Where P and D are chosen together, the pair is waited for in that
            of P, as is an instance that does both.
        means: how large media of each kind is.
        paces: how long the stages take.
        seen_media: encode instances that have had a medium.
        seen_prompts: prefill instances that have had the beginning of a prompt.
    """

    clock: Callable[[], float]
    chooser: Chooser
    queues: Mapping[Role, StageQueue]
    seen_media: Holders
    seen_prompts: Holders
    means: Means = field(default_factory=Means)
    paces: Mapping[Role, Pace] = field(default_factory=lambda: {role: Pace() for role in Role})

    @classmethod
    def of(cls, config: RouterConfig, clock: Callable[[], float]) -> "Scheduling":
        """What the configuration asks for, with nothing in it yet."""
        return cls(
            clock=clock,
            chooser=Chooser({role: policy_named(config.policy_of(role)) for role in Role}),
            queues={
                role: StageQueue(
                    role.value,
                    order_named(config.order_of(role)),
                    config.max_queue,
                    clock,
                )
                for role in Role
            },
            seen_media=Holders(config.reuse_entries),
            seen_prompts=Holders(config.reuse_entries),
        )

    def watch(self, registry: InstanceRegistry) -> None:
        """Follow who comes and goes."""
        present: set[tuple[str, str]] = set()

        def changed() -> None:
            now = {holder(each.info) for each in registry.listed()}
            if present - now:
                self.seen_media.keep_only(now.__contains__)
                self.seen_prompts.keep_only(now.__contains__)
            present.clear()
            present.update(now)
            for queue in self.queues.values():
                queue.wake_all()

        registry.watch(changed)

    def took(self, stage: Role, work: float, began: float) -> None:
        """Learn from so much work, begun at `began` by the clock and done now, how long a stage takes."""
        self.paces[stage].note(work, self.clock() - began)

    def seat_freed(self) -> None:
        """An instance that prefills or decodes may have room now."""
        self.queues[Role.PREFILL].wake_all()
        self.queues[Role.DECODE].wake_all()
