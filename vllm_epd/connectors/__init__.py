# SPDX-License-Identifier: Apache-2.0
"""vLLM's connector interfaces on top of `transfer`: a thin shell, a scheduler half and a worker half."""
