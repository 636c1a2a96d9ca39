# SPDX-License-Identifier: Apache-2.0
"""The codecs as a table, and for JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.bench.codec.results import Codec, Distance
from tests.bench.results import Results
from tests.bench.tables import new_table
from vllm_epd.transfer.codec import NONE

TITLE = "Codecs, 1E1P1D against a single server: errors of rows, differences of log probabilities"


def codec_table(results: Results) -> Table:
    """One row for each model and codec."""
    columns = ("guard", "bytes / image", "of none", "mean error", "worst row", "forced", "mean", "max")
    table = new_table(TITLE, "model", "codec", *columns, "greedy", "mean", "max", "same answers")
    for each in results.codecs:
        errors = (f"{error:.4f}" for error in (each.embeddings.mean_error, each.embeddings.worst_error))
        sizes = f"{each.item_bytes:.0f}", f"{_ratio(results, each) or 1:.4f}"
        distances = (*_cells(each.forced), *_cells(each.greedy))
        label = each.model if each.codec == NONE else ""
        table.add_row(label, each.codec, each.state, *sizes, *errors, *distances, f"{each.same}/{each.answers}")
    return table


def codec_mapping(results: Results, codec: Codec) -> dict[str, Any]:
    return asdict(codec) | {"ratio": _ratio(results, codec)}


def _ratio(results: Results, codec: Codec) -> float | None:
    """Of the bytes to those without a codec; None where that was not measured."""
    none = results.codec(codec.model, NONE)
    return codec.item_bytes / none.item_bytes if none else None


def _cells(distance: Distance) -> tuple[str, str, str]:
    return str(distance.tokens), f"{distance.mean:.2g}", f"{distance.worst:.2g}"
