# SPDX-License-Identifier: Apache-2.0
"""Profiles of what runs: a fleet or one server is asked over its real API, and what it takes is fitted by stage."""
