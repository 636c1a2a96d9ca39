# SPDX-License-Identifier: Apache-2.0
"""The simulator against reality: topologies of a demo model that really run, and the same requests simulated."""
