# SPDX-License-Identifier: Apache-2.0
"""Choose the way of a request, and refuse what this way cannot honour before any work is done."""

from collections.abc import Sequence

from vllm_epd.errors import BadRequestError
from vllm_epd.router import fields
from vllm_epd.router.context import RequestContext
from vllm_epd.router.fields import When
from vllm_epd.router.instances import Instance
from vllm_epd.router.plan import Route
from vllm_epd.router.requests import ClientRequest
from vllm_epd.router.steps.wait import check_in_time, measure, pick_prefill
from vllm_epd.router.timeline import Span


class RouteStep:
    """Plans the way; a request that holds a KV cache already stays on its way."""

    span = Span.ROUTE

    def applies(self, ctx: RequestContext) -> bool:
        """Until the prompt is prefilled."""
        return ctx.kv is None

    async def run(self, ctx: RequestContext) -> None:
        """Plan, check, and count the prefill instance as busy from now on."""
        measure(ctx)
        has_media = bool(ctx.request.media)
        ctx.route = Route.through(pick_prefill(ctx, _candidates(ctx, has_media)), has_media=has_media)
        ctx.hold.work(ctx.route.prefill, ctx.demand.prompt(0))
        _check_honoured(ctx.request, ctx.route, ctx.services.config.max_choices)
        check_in_time(ctx)


def _candidates(ctx: RequestContext, has_media: bool) -> Sequence[Instance]:
    keep = ctx.route if ctx.items else None
    group = ctx.planned.group if ctx.sent else None
    return ctx.fleet.who_may_prefill(has_media=has_media, keep=keep, group=group)


def _check_honoured(request: ClientRequest, route: Route, max_choices: int) -> None:
    if route.splits:
        fields.refuse(request.api.rules, request.body, When.SPLIT, When.APART)
        if len(request.prompts) * request.n > max_choices:
            raise BadRequestError(
                f"{len(request.prompts)} prompts times n = {request.n} are more than the {max_choices}"
                " choices that one request may ask for while prefill and decode are served apart",
                param="n",
            )
    elif route.encodes_apart:
        fields.refuse(request.api.rules, request.body, When.APART)
    _check_length(request, route.prefill.info.limits.get("max_model_len"))


def _check_length(request: ClientRequest, max_model_len: int | None) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked = request.body.get(name)
        if max_model_len is not None and type(asked) is int and asked > max_model_len:
            raise BadRequestError(
                f"{name}={asked} cannot be greater than max_model_len={max_model_len}."
                " Please request fewer output tokens.",
                param=name,
            )
