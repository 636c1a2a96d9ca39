# SPDX-License-Identifier: Apache-2.0
"""All comparisons; a further one is a module with a function from results to rows, listed here."""

from tests.bench.comparisons.base import Comparison, Row
from tests.bench.comparisons.codec import against_no_codec
from tests.bench.comparisons.handover import against_nixl_kv
from tests.bench.comparisons.router import against_proxy
from tests.bench.comparisons.single import against_single
from tests.bench.comparisons.stock import against_stock
from tests.bench.comparisons.transfer import against_memcpy, against_nixl

COMPARISONS: tuple[Comparison, ...] = (
    against_stock,
    against_single,
    against_nixl_kv,
    against_proxy,
    against_nixl,
    against_memcpy,
    against_no_codec,
)

__all__ = ["COMPARISONS", "Comparison", "Row"]
