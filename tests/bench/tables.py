# SPDX-License-Identifier: Apache-2.0
"""How the tables look."""

from rich.table import Table


def new_table(title: str, *columns: str) -> Table:
    """An empty table; its first two columns are words, the others numbers."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number < 2)
    return table
