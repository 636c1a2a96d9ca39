# SPDX-License-Identifier: Apache-2.0
"""Encode, prefill and decode of multimodal models as separate instances of stock vLLM.

Importing this package loads neither vLLM nor torch.
"""

__version__ = "0.1.0"
