# SPDX-License-Identifier: Apache-2.0
"""What a benchmark may fail of."""


class BenchError(Exception):
    """A system did not start, or did not answer as it should."""
