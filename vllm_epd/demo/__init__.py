# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the supported families, made locally, for the CPU demo, the tests and the examples.

Their weights are random and seeded, so they answer nonsense, but they are complete: configuration,
processors, tokenizer, chat template and weights, in a folder that vLLM serves like any other model. The same
family and seed give the same weights in every process and on every machine.
"""

from vllm_epd.demo.image import demo_image
from vllm_epd.demo.store import FAMILIES, ensure_model, serve_args

__all__ = ["FAMILIES", "demo_image", "ensure_model", "serve_args"]
