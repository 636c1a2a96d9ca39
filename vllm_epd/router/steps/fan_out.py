# SPDX-License-Identifier: Apache-2.0
"""Serve several prompts or choices with a pair of P and D each, and make one answer of them.

One KV cache can be handed over once, so n choices take n prefills. The first choice of a prompt is prefilled
alone; the others follow on the same instance, whose prefix cache holds the prompt by then. Each pair goes on
to D on its own, so that the first tokens do not wait for the last prefill. Prompts are spread over the
prefill instances, and all pairs over the decode instances, by the routing policy.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from vllm_epd.router import sse
from vllm_epd.router.choices import StreamMerger, merge_answers
from vllm_epd.router.context import RequestContext
from vllm_epd.router.jsonio import encode
from vllm_epd.router.plan import Route
from vllm_epd.router.recovery import Step, run_steps
from vllm_epd.router.requests import Branch
from vllm_epd.router.seats import Counted
from vllm_epd.router.sinks import CollectingSink, MergingSink, Sink
from vllm_epd.router.steps.wait import pick_prefill
from vllm_epd.router.tasks import all_or_cancel
from vllm_epd.types import Role


@dataclass(slots=True)
class _Prompt:
    """What the choices of one prompt share: their instance, and what the first one has learnt."""

    route: Route
    prefilled: asyncio.Event = field(default_factory=asyncio.Event)
    first: RequestContext | None = None


class FanOutStep:
    """Runs prefill and decode for each branch of a request that has several."""

    span = None

    def __init__(self, pair: tuple[Step, Step]) -> None:
        self._prefill, self._decode = pair

    def applies(self, ctx: RequestContext) -> bool:
        """If P and D are apart; one instance serves several choices by itself."""
        return ctx.planned.splits and len(ctx.request.prompts) * ctx.request.n > 1

    async def run(self, ctx: RequestContext) -> None:
        """Serve all branches; the first failure ends the request."""
        if ctx.request.stream:
            await self._stream(ctx)
        else:
            sinks = [CollectingSink() for _ in ctx.request.branches]
            await self._serve(ctx, lambda branch: sinks[branch.index])
            await ctx.sink.body(encode(merge_answers([sink.answer for sink in sinks], ctx.request.n)))
        ctx.answered = True

    async def _stream(self, ctx: RequestContext) -> None:
        merger = StreamMerger(ctx.request.api.id_prefix + ctx.request_id, ctx.request.n)
        lock = asyncio.Lock()
        await self._serve(ctx, lambda branch: MergingSink(ctx.sink, merger, lock, branch.index))
        usage = merger.closing()
        await ctx.sink.events((b"" if usage is None else sse.event(encode(usage))) + sse.DONE)

    async def _serve(self, ctx: RequestContext, sink_of: Callable[[Branch], Sink]) -> None:
        prompts = _prompts(ctx)
        ctx.hold.close()  # from here on the calls themselves count
        ctx.leases.prefills = len(ctx.request.branches)
        gate = asyncio.Semaphore(ctx.services.config.fan_out)
        await all_or_cancel(
            self._branch(ctx, branch, sink_of(branch), prompts[branch.prompt], gate) for branch in ctx.request.branches
        )

    async def _branch(
        self, ctx: RequestContext, branch: Branch, sink: Sink, prompt: _Prompt, gate: asyncio.Semaphore
    ) -> None:
        # The gate opens in order, so the first choice of a prompt is always in before those that wait for it.
        async with gate:
            child = replace(ctx, branch=branch, sink=sink, route=prompt.route, items=dict(ctx.items), hold=Counted())
            if branch.choice:
                await prompt.prefilled.wait()
                _take_over(child, prompt)
            else:
                prompt.first = child
            try:
                with child.hold:
                    await run_steps((self._prefill,), child)
                    prompt.prefilled.set()
                    await run_steps((self._decode,), child)
            finally:
                child.close_offer()


def _prompts(ctx: RequestContext) -> Sequence[_Prompt]:
    """The first prompt goes where the route says, further ones where the policy says."""
    prompts = [_Prompt(ctx.planned)]
    for branch in ctx.request.branches[ctx.request.n :: ctx.request.n]:
        instance = pick_prefill(replace(ctx, branch=branch), ctx.peers(Role.PREFILL))
        ctx.hold.work(instance, ctx.demand.prompt(branch.prompt))
        prompts.append(_Prompt(ctx.planned.by(instance)))
    return prompts


def _take_over(child: RequestContext, prompt: _Prompt) -> None:
    """Go where the first choice went, and spare P the media that it encoded for it, if it still offers all of it."""
    first = prompt.first
    if first is None:
        return
    child.route = first.route
    if all(item.is_offered for item in first.items.values()):
        child.items = dict(first.items)
