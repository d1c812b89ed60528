"""Reports as tables of other libraries. Their rows are made in the core."""

import csv
import io
from typing import TYPE_CHECKING, Any

from spectral_core._extras import require
from spectral_core.reporting.report import SpectralReport
from spectral_core.reporting.text_table import printable

if TYPE_CHECKING:
    import pandas
    import polars
    from rich.table import Table

__all__ = ["to_csv", "to_markdown", "to_pandas", "to_polars", "to_rich"]


def to_pandas(report: SpectralReport) -> "pandas.DataFrame":
    """Return one row per layer, indexed by its name; needs the extra ``tables``.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> list(to_pandas(report).index)
    ['0', 'head']
    """
    frame: Any = require("pandas", "tables", "A pandas table").DataFrame
    table: pandas.DataFrame = frame(report.rows()).set_index("layer")
    return table


def to_polars(report: SpectralReport) -> "polars.DataFrame":
    """Return one row per layer; needs polars.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> to_polars(report)["layer"].to_list()
    ['0', 'head']
    """
    frame: Any = require("polars", "tables", "A polars table").DataFrame
    table: polars.DataFrame = frame(report.rows())
    return table


def to_rich(report: SpectralReport, *, terms: bool = False) -> "Table":
    """Return the summary's table, or that of the terms of α, for a `rich` console.

    Needs the extra ``cli``.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> to_rich(report).row_count
    2
    """
    table_class: Any = require("rich.table", "cli", "A rich table").Table
    table: Table = table_class(box=require("rich.box", "cli", "A rich table").SIMPLE_HEAD)
    header, rows = report.decomposition_table() if terms else report.table()
    for column in header:
        words = column in ("layer", "kind", "profile")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    escape: Any = require("rich.markup", "cli", "A rich table").escape
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table


def to_markdown(report: SpectralReport) -> str:
    """Return the summary's table in Markdown, and below it that of the terms of α, if any.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> to_markdown(report).splitlines()[1][:20]
    '| --- | --- | --- | '
    """
    tables = [report.table()]
    if report.decomposed():
        tables.append(report.decomposition_table())
    return "\n\n".join(_markdown(header, rows) for header, rows in tables)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def to_csv(report: SpectralReport) -> str:
    """Return one line per layer with full precision, and a header.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> len(to_csv(report).splitlines())
    3
    """
    rows = report.rows()
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
