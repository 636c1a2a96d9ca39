# SPDX-License-Identifier: Apache-2.0
"""The router's front door: HTTP/1.1 on llhttp, and no more of it than a router needs.

A server library for everything that HTTP has takes a quarter of the processor time of a router that hands a request of
100 KB to three instances.
"""
