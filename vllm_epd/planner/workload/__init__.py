# SPDX-License-Identifier: Apache-2.0
"""What is asked of a fleet: when requests come, and what is in them."""
