# SPDX-License-Identifier: Apache-2.0
"""Which topology, and is it worth it: workload, profile, simulation, search. Needs no GPU and no vLLM."""
