# SPDX-License-Identifier: Apache-2.0
"""Profiles from first principles: the operations and bytes of an architecture against the rates of a card."""
