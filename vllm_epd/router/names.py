# SPDX-License-Identifier: Apache-2.0
"""Names of requests, and of what an instance offers for one."""

import os

#: So much of a request's id is in such a name; every chunk of a KV cache is known by one.
_SHOWN = 64


def fresh_name() -> str:
    """A new name, which cannot be guessed."""
    return os.urandom(16).hex()


def offer_name(request_id: str, label: str = "") -> str:
    """A new name that begins with the id of the request, then with what is offered, and cannot be guessed."""
    return f"{request_id[:_SHOWN]}-{label}{fresh_name()}"
