# SPDX-License-Identifier: Apache-2.0
"""A fleet in discrete events: a profile, a workload and a topology in, times and use out."""
