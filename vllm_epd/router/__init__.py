# SPDX-License-Identifier: Apache-2.0
"""The HTTP front door: one OpenAI-compatible address in front of encode, prefill and decode instances."""
