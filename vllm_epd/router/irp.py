# SPDX-License-Identifier: Apache-2.0
"""Intra-request parallelism: as how many shards one item is encoded. Pure."""

#: Below so many tokens, four of InternVL's tiles, a shard is not worth a call and a preprocessing of its own.
SHARD_TOKENS = 1024


def idle_degree(idle: int, among: int, tokens: float) -> int:
    """As many shards as there are idle encoders for an item, as long as each is worth it.

    Args:
        idle: encoders with nothing to do.
        among: distinct items of the request, which are spread over the encoders anyway.
        tokens: what the item is estimated at.
    """
    return max(1, min(idle // among, int(tokens // SHARD_TOKENS)))
