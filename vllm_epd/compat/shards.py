# SPDX-License-Identifier: Apache-2.0
"""One item of a request cut down to the shard of it that this instance is to encode.

The prompt stays that of the whole item. Its placeholder is marked to take in the rows of the shard alone, which is what
vLLM's scheduler, its caches and our connector reckon with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange

from vllm_epd.compat.cuts import Cut
from vllm_epd.transfer.keys import part_key


@dataclass(kw_only=True)
class ShardFeature(MultiModalFeatureSpec):
    """One part of an item, under a key of its own.

    Attributes:
        item: content key of the item.
        index: which part it is; one at or past `count` has nothing in it.
        count: how many parts the item has.
        described: the fields of the whole item but its pixels.
    """

    item: str
    index: int
    count: int
    described: MultiModalKwargsItem

    @property
    def whole(self) -> MultiModalFeatureSpec:
        """The item as far as its description goes."""
        return MultiModalFeatureSpec(self.described, self.modality, self.item, self.mm_position, self.mm_hash)


def shard_features(
    features: Sequence[MultiModalFeatureSpec], index: int, asked: int, cuts: Mapping[str, Cut]
) -> list[MultiModalFeatureSpec]:
    """Part `index` of `asked` of each item.

    An item has no more parts than units; one that cannot be cut is its own first part.
    """
    return [_shard(feature, index, asked, cuts.get(feature.modality)) for feature in features]


def _shard(feature: MultiModalFeatureSpec, index: int, asked: int, cut: Cut | None) -> MultiModalFeatureSpec:
    units = _units(feature, cut)
    count = min(asked, units)
    if index == 0 and count == 1:
        return feature
    item = feature.data or MultiModalKwargsItem()
    described = MultiModalKwargsItem({name: elem for name, elem in item.items() if cut is None or name != cut.pixels})
    first, last = (index * units // count, (index + 1) * units // count) if index < count else (0, 0)
    data = described if cut is None or first == last else _cut_down(item, cut, first, last)
    rows = feature.mm_position.get_num_embeds() // units
    return ShardFeature(
        data=data,
        modality=feature.modality,
        identifier=part_key(feature.identifier, index, count),
        mm_position=_marked(feature.mm_position, first * rows, last * rows),
        mm_hash=feature.mm_hash,
        item=feature.identifier,
        index=index,
        count=count,
        described=described,
    )


def _units(feature: MultiModalFeatureSpec, cut: Cut | None) -> int:
    """How many units there are; 1 where nothing can be cut."""
    if cut is None or feature.data is None or not {cut.pixels} <= set(feature.data) <= cut.fields:
        return 1
    units = cut.units(feature.data.get_data())
    return units if units and feature.mm_position.get_num_embeds() % units == 0 else 1


def _cut_down(item: MultiModalKwargsItem, cut: Cut, first: int, last: int) -> MultiModalKwargsItem:
    taken = cut.take(item.get_data(), first, last)
    changed = {name: replace(item[name], data=_owned(value)) for name, value in taken.items()}
    return MultiModalKwargsItem({**item, **changed})


def _owned(value: Any) -> Any:
    """`value` in memory of its own: a view would keep the whole item, and travel with all of it to the workers."""
    return [_owned(each) for each in value] if isinstance(value, list) else value.clone()


def _marked(position: PlaceholderRange, first: int, last: int) -> PlaceholderRange:
    """`position` with only its embedding rows from `first` up to before `last`."""
    mask = torch.ones(position.length, dtype=torch.bool) if position.is_embed is None else position.is_embed
    order = mask.cumsum(0)
    return replace(position, is_embed=mask & (order > first) & (order <= last))
