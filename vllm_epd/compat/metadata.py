# SPDX-License-Identifier: Apache-2.0
"""What sizes the placeholders of items that another instance encodes."""

from collections.abc import Mapping, Sequence
from typing import Any

DEPTHS: Mapping[str, int] = {"image_sizes": 1, "video_image_sizes": 2}
"""Fields that MiniCPM-V's processor nests deeper than its parser reads them, and the nesting the parser reads:
`[width, height]` of an image, a list of these for the frames of a video."""


def describe_items(features: Sequence[Any], resolver: Any) -> dict[str, dict[str, Any]]:
    """One entry per content key: `item_indices`, `modality` and `metadata`, ready for JSON.

    The entry of a part of an item has the metadata of the whole, its content key as `item`, and as `shard` which part
    of how many it is.

    Args:
        features: a request's `mm_features`.
        resolver: vLLM's `PlaceholderMetadataResolver`, which knows the fields that the model's parser requires.
    """
    from vllm.distributed.ec_transfer.ec_connector.utils import collect_ec_item_metadata

    from vllm_epd.compat.shards import ShardFeature

    shards = [feature for feature in features if isinstance(feature, ShardFeature)]
    features = [feature.whole if isinstance(feature, ShardFeature) else feature for feature in features]
    items: dict[str, dict[str, Any]] = collect_ec_item_metadata(features, resolver)
    for feature in features:
        entry = items[feature.identifier]
        entry["modality"] = feature.modality
        if feature.data is None:
            continue
        for name in resolver.fields_for(feature.modality) & DEPTHS.keys():
            entry["metadata"][name] = unnest(feature.data.get_data()[name], DEPTHS[name])
    for shard in {shard.item: shard for shard in shards}.values():
        entry = items.pop(shard.item)
        items[shard.identifier] = {**entry, "item": shard.item, "shard": [shard.index, shard.count]}
    return items


def unnest(value: Any, depth: int) -> Any:
    """`value`, a tensor or nested lists of tensors, as lists of exactly `depth` levels of nesting."""
    plain = _plain(value)
    while _depth(plain) > depth and len(plain) == 1:
        plain = plain[0]
    return plain


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value.tolist()


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0
