# SPDX-License-Identifier: Apache-2.0
"""The stages of a request, each a step over its `RequestContext`."""

from vllm_epd.router.pipeline import Pipeline
from vllm_epd.router.steps.decode import DecodeStep
from vllm_epd.router.steps.encode import EncodeStep
from vllm_epd.router.steps.fan_out import FanOutStep
from vllm_epd.router.steps.prefill import PrefillStep
from vllm_epd.router.steps.route import RouteStep


def build_pipeline() -> Pipeline:
    """The way of every generating request; text alone skips encode, one instance alone all but decode."""
    pair = (PrefillStep(), DecodeStep())
    return Pipeline((RouteStep(), EncodeStep(), FanOutStep(pair), *pair))


__all__ = ["build_pipeline"]
