# SPDX-License-Identifier: Apache-2.0
"""A stub of an encode instance that works on one tile after the other, and can be asked for some tiles of an item."""

import asyncio
from typing import Any

from aiohttp import web

from tests.fakes.instance import FakeInstance, Seen, item_hash, items_of

SHARDS = {"shards_image": 1, "shards_video": 1}


class TiledEncoder(FakeInstance):
    """Each item has `tiles` tiles, of which each takes `tile_s`.

    Attributes:
        tiles: of each item.
        tile_s: seconds for one.
        encoded: which tiles of which item were encoded, in order.
    """

    def __init__(self, letters: str = "E", *, tiles: int = 12, tile_s: float = 0.0, **more: Any) -> None:
        super().__init__(letters, **{"limits": SHARDS, **more})
        self.tiles = tiles
        self.tile_s = tile_s
        self.encoded: list[tuple[str, range]] = []
        self._encoder = asyncio.Lock()

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        async with self._encoder:
            for _, data in items_of(seen.body):
                tiles = self._asked(seen)
                await asyncio.sleep(self.tile_s * len(tiles))
                self.encoded.append((item_hash(data), tiles))
        return await super()._answer(request, seen)

    def _asked(self, seen: Seen) -> range:
        index, count = self._shard(seen)
        if index >= count:
            return range(0)
        return range(index * self.tiles // count, (index + 1) * self.tiles // count)

    def _shard(self, seen: Seen) -> tuple[int, int]:
        index, asked = seen.body["ec_transfer_params"]["epd"].get("shard", (0, 1))
        return index, min(asked, self.tiles)

    def _described(self, seen: Seen) -> dict[str, Any]:
        index, count = self._shard(seen)
        if (index, count) == (0, 1):
            return super()._described(seen)
        ((_, data),) = items_of(seen.body)
        item, key = item_hash(data), f"{item_hash(data)}:{index}/{count}"
        metadata = {"image_num_patches": self.tiles}
        entry = {"item": item, "shard": [index, count], "item_indices": [0], "modality": "image", "metadata": metadata}
        if index < count:
            entry["handle"] = self._grant(key, f"{seen.request_id}:{self._granted}")
        return {key: entry}
