# SPDX-License-Identifier: Apache-2.0
"""Send each media part to one encode instance, several at once."""

import asyncio
import logging

from vllm_epd.errors import UpstreamError
from vllm_epd.router import jsonio
from vllm_epd.router.answers import decode_answer
from vllm_epd.router.context import RequestContext
from vllm_epd.router.embeddings import read_offer
from vllm_epd.router.failures import UnreachableError
from vllm_epd.router.instances import Instance
from vllm_epd.router.media import EncodedItem, MediaPart
from vllm_epd.router.requests import encode_body
from vllm_epd.router.tasks import all_or_cancel
from vllm_epd.types import Role

logger = logging.getLogger(__name__)

SERVER_ERROR = 500


class EncodeStep:
    """Encodes what is not encoded yet; a part that occurs twice in a request is encoded once."""

    name = Role.ENCODE.value

    def applies(self, ctx: RequestContext) -> bool:
        """If media is encoded apart from prefill."""
        return ctx.planned.encodes_apart and ctx.encoded is None

    async def run(self, ctx: RequestContext) -> None:
        """Encode all parts at once; the first failure cancels the others."""
        gate = asyncio.Semaphore(ctx.services.config.fan_out)
        await all_or_cancel(
            _encode(ctx, places, gate) for places in _occurrences(ctx.request.media) if places[0] not in ctx.items
        )
        ctx.forget_media()


async def _encode(ctx: RequestContext, places: list[int], gate: asyncio.Semaphore) -> None:
    async with gate:
        item = await _ask(ctx, places[0])
    ctx.items.update(dict.fromkeys(places, item))


async def _ask(ctx: RequestContext, place: int) -> EncodedItem:
    """Have one part encoded; a second time, elsewhere if possible, where the first instance failed at it.

    Encoding changes nothing that a second try could do twice. vLLM itself fails a request now and then and counts on
    that: when one was aborted on its way, the caches of its two processes disagree about the item of the next one.
    """
    body = jsonio.encode(encode_body(ctx.request, ctx.request.media[place]))
    instance = ctx.pick(Role.ENCODE)
    try:
        return await _ask_one(ctx, place, instance, body)
    except UnreachableError:
        raise
    except UpstreamError as error:
        if error.status < SERVER_ERROR:
            raise
        logger.warning("request %s: encoding is tried again: %s", ctx.request_id, error)
        return await _ask_one(ctx, place, ctx.pick(Role.ENCODE, avoid=instance), body)


async def _ask_one(ctx: RequestContext, place: int, instance: Instance, body: bytes) -> EncodedItem:
    with instance.busy():
        answer = await ctx.services.client.ask(
            Role.ENCODE, instance, ctx.request.api.value, body, ctx.headers_for(f"-e{place}")
        )
    return read_offer(decode_answer(answer, Role.ENCODE.value), instance.name)


def _occurrences(media: tuple[MediaPart, ...]) -> list[list[int]]:
    """The places of each distinct part."""
    found: list[list[int]] = []
    for place, each in enumerate(media):
        same = next((places for places in found if media[places[0]].part == each.part), None)
        if same is None:
            found.append([place])
        else:
            same.append(place)
    return found
