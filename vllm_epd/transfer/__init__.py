# SPDX-License-Identifier: Apache-2.0
"""Bytes between processes; knows tensors, not vLLM."""
