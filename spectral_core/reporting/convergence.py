"""How exponents move with the sample size: the result of `converge`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spectral_core.errors import ReportError
from spectral_core.reporting.spectrum import Provenance
from spectral_core.reporting.text_table import printable, text_table
from spectral_core.storage.json_files import read_json, write_json
from spectral_core.storage.json_values import UNREADABLE, decode, encode

__all__ = ["Convergence", "LayerConvergence"]

Numbers = npt.NDArray[np.float64]
NumberName = Literal["alpha", "gamma", "s", "participation"]
_SYMBOLS: dict[NumberName, str] = {"alpha": "α", "gamma": "γ", "s": "s", "participation": "PR"}


@dataclass(frozen=True)
class LayerConvergence:
    """The exponents of one layer against the sample size (Theory 11.5).

    A number at size n is the mean over all disjoint parts of the data of that size, each measured
    along the directions of its own gradient as if it were all the data.

    Parameters
    ----------
    name : str
        The name of the layer.
    sizes : ndarray, shape (S,), float64
        The numbers of terms, ascending, the last of them N. Where parts are unequal it is the mean.
    parts : tuple of int
        The number of disjoint parts of each size: 1 at N.
    alpha, gamma, s, participation : ndarray, shape (S,), float64
        The exponents and the participation ratio. One that cannot be fitted on some part is NaN.
    stderr : mapping of str to ndarray of shape (S,), float64
        The standard error of each of these numbers, by its name, as measured once on so many terms.
        Below N it is the standard deviation over the parts, at N the sampling error of `blocks`
        blocks of samples (11.4).
    sigma : tuple of ndarray of shape (K,), float64
        The singular values at each size, as means over the parts. NaN where a part has no k-th.
    blocks : int
        The number of blocks of the sampling error.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> values = np.array([1.9, 1.6, 1.55])
    >>> layer = sc.LayerConvergence(
    ...     "fc", np.array([64.0, 128, 256]), (4, 2, 1), values, values, values, values,
    ...     {"alpha": np.array([0.2, 0.15, 0.1])}, (np.ones(1),) * 3, 8,
    ... )
    >>> layer.drift().round(2).tolist()
    [nan, 0.3, 0.05]
    >>> print(layer.sentence)
    fc: the drift of α lies within its standard error from 256 terms on (+0.050 and 0.100 there).
    """

    name: str
    sizes: Numbers
    parts: tuple[int, ...]
    alpha: Numbers
    gamma: Numbers
    s: Numbers
    participation: Numbers
    stderr: Mapping[str, Numbers]
    sigma: tuple[Numbers, ...]
    blocks: int

    def drift(self, number: NumberName = "alpha") -> Numbers:
        """Return ``θ(n/2) − θ(n)`` at each size n; NaN where half of it was not measured."""
        values: Numbers = getattr(self, number)
        half = self._half_of_each()
        return np.where(half >= 0, values[half] - values, np.nan)

    @property
    def enough(self) -> int | None:
        """The smallest size from which on the drift of α lies within its standard error, if any.

        All larger sizes have to agree. Else a small one, whose standard error is large, could be
        named while α still moves at all larger ones.
        """
        place = self._place_of_enough()
        return None if place is None else round(float(self.sizes[place]))

    @property
    def sentence(self) -> str:
        """What `enough` says, with the drift and the standard error there, or at N if none is."""
        drift, stderr = self.drift(), self.stderr["alpha"]
        known, place = np.flatnonzero(self._half_of_each() >= 0), self._place_of_enough()
        if not len(known):
            return f"{self.name}: of no size the half was measured, so the drift is not known."
        if place is not None:
            return (
                f"{self.name}: the drift of α lies within its standard error from "
                f"{self.sizes[place]:,.0f} terms on ({drift[place]:+.3f} and {stderr[place]:.3f} "
                "there)."
            )
        last = known[-1]
        if not np.isfinite(drift[last]) or not np.isfinite(stderr[last]):
            return (
                f"{self.name}: α cannot be fitted on every part of the data, so its drift at "
                f"{self.sizes[last]:,.0f} terms cannot be judged."
            )
        return (
            f"{self.name}: α still moves with the sample size: at {self.sizes[last]:,.0f} terms "
            f"its drift is {drift[last]:+.3f}, and its standard error {stderr[last]:.3f}."
        )

    def _place_of_enough(self) -> int | None:
        drift, found = self.drift(), None
        for place in reversed(np.flatnonzero(self._half_of_each() >= 0).tolist()):
            if not abs(drift[place]) <= self.stderr["alpha"][place]:
                break
            found = place
        return found

    def _half_of_each(self) -> npt.NDArray[np.int64]:
        """Return where the half of each size is among the sizes, or −1 where it is not."""
        nearest = np.asarray([np.argmin(np.abs(self.sizes - n / 2)) for n in self.sizes])
        # Parts of the data differ by a sample or a group of them.
        is_half = np.isclose(self.sizes[nearest], self.sizes / 2, rtol=0.02)
        return np.where(is_half, nearest, -1)

    def cells(self) -> list[list[str]]:
        """Return the cells of a table with a line for each size."""
        drift = self.drift()
        lines = []
        for i, size in enumerate(self.sizes):
            line = [self.name, f"{size:.0f}", f"{self.parts[i]}"]
            for name in _SYMBOLS:
                line += [f"{getattr(self, name)[i]:.3f}", f"{self.stderr[name][i]:.3f}"]
            lines.append([*line, f"{drift[i]:+.3f}" if np.isfinite(drift[i]) else ""])
        return lines

    def _check_sizes(self) -> None:
        """Raise `ValueError` unless there is one number for each size."""
        numbers = [getattr(self, name) for name in _SYMBOLS]
        numbers += [self.stderr[name] for name in _SYMBOLS]
        if {len(each) for each in (*numbers, self.parts, self.sigma)} != {len(self.sizes)}:
            raise ValueError(f"layer {self.name!r} has unequal numbers of sizes")


@dataclass(frozen=True)
class Convergence(Mapping[str, LayerConvergence]):
    """The exponents of every layer against the sample size, by name; see `converge`.

    Parameters
    ----------
    provenance : Provenance
        The problem, the versions and the options.
    layers : tuple of LayerConvergence
        The layers in the order of the forward pass.
    skipped : mapping of str to str
        The reason why other layers could not be measured at all sizes.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> found = sc.converge(problem, sizes=[16, 32], top_k=4, progress=False)
    >>> list(found), found["head"].sizes
    (['0', 'head'], array([16., 32., 64.]))
    >>> list(sc.Convergence.from_dict(found.to_dict()))
    ['0', 'head']
    """

    provenance: Provenance
    layers: tuple[LayerConvergence, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LayerConvergence:
        """Return the layer called `name`; a `KeyError` lists the names."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        if name in self.skipped:
            raise KeyError(f"layer {name!r} was skipped: {self.skipped[name]}")
        raise KeyError(f"no layer {name!r}; there are: {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the layers, in the order of the forward pass."""
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    def __str__(self) -> str:
        """Return the summary."""
        return self.summary()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of the summary's table, a line for each layer and size.

        ``±`` is one standard error of a measurement on so many terms.
        """
        numbers = [cell for symbol in _SYMBOLS.values() for cell in (symbol, "±")]
        header = ["layer", "terms", "parts", *numbers, "drift of α"]
        return header, [line for layer in self.layers for line in layer.cells()]

    def summary(self) -> str:
        """Return the table for a terminal, a sentence for each layer, and what was skipped."""
        provenance = self.provenance
        heading = (
            f"exponents against the sample size; {provenance.curvature} curvature along the top "
            f"{provenance.top_k} gradient singular directions of each part of the data; ± is the "
            "standard error: the spread over the parts, and of all data the sampling error"
        )
        sentences = "\n".join(layer.sentence for layer in self.layers)
        parts = [heading, text_table(*self.table()), sentences]
        if self.skipped:
            parts.append("skipped\n" + "\n".join(f"  {n}: {r}" for n, r in self.skipped.items()))
        return printable("\n\n".join(parts))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dict(encode(self))

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, atomically.

        Raises
        ------
        InputError
            If `path` is no path.
        ReportError
            If the file cannot be written; what it held before is still there.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Convergence":
        """Read a result that `save` wrote.

        Raises
        ------
        InputError
            If `path` is no path.
        ReportError
            If the file is missing, truncated or no such result.
        """
        return cls.from_dict(read_json(path, "result"), source=str(path))

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "convergence") -> "Convergence":
        """Rebuild a result from `to_dict`; `source` names it in errors.

        Raises
        ------
        ReportError
            If the data are no such result.
        """
        try:
            found = decode(cls, data)
            for layer in found.layers:
                layer._check_sizes()
            found.summary()  # data that cannot be shown are no result
        except UNREADABLE as error:
            raise ReportError(
                f"{source}: is not a complete convergence ({error!r}); save it again."
            ) from error
        return found
