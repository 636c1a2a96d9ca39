# SPDX-License-Identifier: Apache-2.0
"""A router of several processes that share a port: the parent that keeps them running, and how they agree."""
