# SPDX-License-Identifier: Apache-2.0
"""Items that several instances encode together: each is asked for one shard of an item.

How many units an item has is known once its tensors are there, which for one that vLLM's processor cache holds is in
the engine core. There the item is cut, after the processor and before scheduler and encoder see it.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

from vllm_epd.types import ROLE_ENV, RoleSet

MARK = "epd_shards"


def asked_shard(params: Any) -> tuple[int, int] | None:
    """Which part of how many the router asks for in `ec_transfer_params`; None if it asks for the whole.

    Raises:
        ValueError: it asks for something that there cannot be.
    """
    options = params.get("epd") if isinstance(params, Mapping) else None
    if not isinstance(options, Mapping) or options.get("shard") is None:
        return None
    match options["shard"]:
        case [int(index), int(count)] if 0 <= index < count and options.get("offer"):
            return index, count
    raise ValueError(
        f"`shard` must be [index, count] with 0 <= index < count, beside `offer`, got {options['shard']!r}"
    )


def install() -> None:
    """Have this process's engine core cut items down to the shards it is asked for; a second call does nothing.

    Only on an instance that does nothing but encode: a language model needs whole items.
    """
    if RoleSet.parse(os.environ[ROLE_ENV]).language_model:
        return
    from vllm.v1.engine.core import EngineCore

    preprocess = EngineCore.preprocess_add_request
    if hasattr(preprocess, MARK):
        return

    @functools.wraps(preprocess)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        scheduled, wave = preprocess(self, request)
        # ### PATCH START item-shards
        if scheduled.mm_features and (shard := asked_shard(scheduled.ec_transfer_params)):
            from vllm_epd.compat.cuts import cuts_of
            from vllm_epd.compat.shards import shard_features

            cuts = cuts_of(self.vllm_config.model_config)
            scheduled.mm_features = shard_features(scheduled.mm_features, *shard, cuts)
        # ### PATCH END
        return scheduled, wave

    setattr(preprocess_add_request, MARK, True)
    EngineCore.preprocess_add_request = preprocess_add_request
