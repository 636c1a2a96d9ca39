# SPDX-License-Identifier: Apache-2.0
"""HTTP clients that share one TLS context: making one reads all certificates, which takes longer than most calls."""

import ssl
from typing import Any

import httpx

TLS = ssl.create_default_context()


def client(**options: Any) -> httpx.AsyncClient:
    """A client with these `options` of httpx."""
    return httpx.AsyncClient(verify=TLS, **options)


def get(url: str) -> httpx.Response:
    """One call that others wait for."""
    return httpx.get(url, verify=TLS)
