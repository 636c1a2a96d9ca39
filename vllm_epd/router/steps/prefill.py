# SPDX-License-Identifier: Apache-2.0
"""Have the prompt prefilled by an instance that keeps the KV cache for another one."""

from vllm_epd.router import jsonio
from vllm_epd.router.answers import decode_answer, handed_over
from vllm_epd.router.context import RequestContext
from vllm_epd.router.embeddings import read_description
from vllm_epd.router.requests import prefill_body
from vllm_epd.types import Role


class PrefillStep:
    """Asks P for one token and keeps what says where the KV cache is.

    From P's answer on its KV cache waits for D, at most for P's lease (30 s in vLLM, prolonged while D
    queues). A client that leaves between the two calls strands it for that long; nothing is sent to D.
    """

    name = Role.PREFILL.value

    def applies(self, ctx: RequestContext) -> bool:
        """If another instance decodes."""
        return ctx.planned.splits and ctx.kv is None and not ctx.answered

    async def run(self, ctx: RequestContext) -> None:
        """Prefill; learn of the media what P encoded itself."""
        route, instance = ctx.planned, ctx.planned.prefill
        body = jsonio.encode(prefill_body(ctx.request, ctx.branch, ctx.encoded))
        ctx.hold.close()  # from here on the call itself counts
        with instance.busy():
            raw = await ctx.services.client.ask(
                Role.PREFILL,
                instance,
                ctx.request.api.value,
                body,
                ctx.headers_for(_suffix(ctx.branch.index)),
            )
        ctx.leases.prefilled()
        answer = decode_answer(raw, Role.PREFILL.value)
        kv = handed_over(answer, instance.name)
        if route.raw_media and ctx.encoded is None:
            items = read_description(answer, len(ctx.request.media), instance.name)
            ctx.items.update(enumerate(items))
        ctx.kv = kv
        ctx.forget_media()


def _suffix(index: int) -> str:
    return f"-p{index}" if index else "-p"
