# SPDX-License-Identifier: Apache-2.0
"""A topology on one host: which instances, on which devices, started, watched and stopped together."""
