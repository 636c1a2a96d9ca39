# SPDX-License-Identifier: Apache-2.0
"""The only code that knows a vLLM version: target, look-ups, guarded run-time changes."""
