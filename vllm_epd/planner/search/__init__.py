# SPDX-License-Identifier: Apache-2.0
"""Which fleet serves a workload best: what can be had, how good it is, and how it is found."""
