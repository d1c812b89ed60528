"""A problem whose curvatures are put together from those of groups of its samples."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature, way_of
from spectral_core.curvature.factors_along import factors_along
from spectral_core.curvature.problem import (
    CurvatureKind,
    CurvatureProblem,
    KroneckerFactors,
    SampleGroup,
)
from spectral_core.errors import LayerError

__all__ = ["DirectionsOfGroups", "GroupedFactors", "GroupedProblem"]

Directions = Mapping[str, tuple[Any, Any]]
DirectionsOfGroups = Literal["auto", "own", "fixed"]
"""Along which directions subsamples are measured.

- ``"own"``: along those of each subsample's own gradient, as if it were all the data.
- ``"fixed"``: along those of all data. No engine computes more directions for it.
- ``"auto"``: their own where the engine gets further directions for little, else fixed ones.
"""


@dataclass(frozen=True)
class GroupedFactors(KroneckerFactors):
    """Factors of all data, with those of each group of samples in `parts`."""

    parts: tuple[KroneckerFactors, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[KroneckerFactors], shares: Sequence[float]) -> Self:
        """Return the means over groups with given shares of the terms."""

        def mean(arrays: Sequence[Any]) -> Any:
            weighted = [share * array for share, array in zip(shares, arrays, strict=True)]
            return sum(weighted[1:], weighted[0])

        def mean_if_known(arrays: Sequence[Any]) -> Any:
            return None if any(array is None for array in arrays) else mean(arrays)

        return cls(
            output_covariance=mean([part.output_covariance for part in parts]),
            input_covariance=mean([part.input_covariance for part in parts]),
            output_noise=mean_if_known([part.output_noise for part in parts]),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            diagonal=mean_if_known([part.diagonal for part in parts]),
            parts=tuple(parts),
        )


@dataclass(frozen=True)
class GroupedProblem:
    """Computes the curvatures of each group, and the mean over groups, which is that of all data.

    Parameters
    ----------
    problem : CurvatureProblem
        The problem of all data. It serves where an engine's result for a layer is doubted.
    groups : sequence of SampleGroup
        The groups of its samples.
    more : sequence of mapping of str to (u, v)
        For each group, the directions of the subsamples that it belongs to, by layer.
    choice : {"auto", "own", "fixed"}
        Along which directions subsamples are measured.
    """

    problem: CurvatureProblem
    groups: Sequence[SampleGroup]
    more: Sequence[Directions]
    choice: DirectionsOfGroups

    @property
    def curvature_engine(self) -> str:
        """The name of the engine behind `curvatures`."""
        return way_of(self.problem)

    def curvatures(self, layer: str, u: Any, v: Any, kind: CurvatureKind = "hessian") -> Any:
        """Return the curvatures of a layer over all data, by the problem itself."""
        return self.problem.curvatures(layer, u, v, kind)

    def layer_curvatures(
        self,
        directions: Directions,
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        done: Collection[str] = (),
        progress_callback: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of each layer with those of the groups, as soon as all have them."""
        tell = progress_callback or (lambda text: None)
        running = [
            self._of_group(
                number, directions, kind, engine=engine, done=done, **options,
                progress_callback=lambda text, n=number: tell(_of_groups(text, n, self.groups)),
            )
            for number in range(len(self.groups))
        ]  # fmt: skip
        waiting: dict[str, dict[int, LayerCurvature | LayerError]] = defaultdict(dict)
        # The groups take turns, so that a layer is finished before the next ones begin.
        while running_now := [r for r in enumerate(running) if r[1] is not None]:
            for number, found_by_group in running_now:
                found = next(found_by_group, None)
                if found is None:
                    running[number] = None  # type: ignore[call-overload]
                    continue
                name = found.layer if isinstance(found, LayerError) else found.name
                waiting[name][number] = found
                if len(waiting[name]) == len(self.groups):
                    of_groups = waiting.pop(name)
                    yield self._mean([of_groups[group] for group in range(len(self.groups))])

    def kronecker_factors(
        self, layers: Sequence[str], *, directions: Directions | None = None, **options: Any
    ) -> dict[str, GroupedFactors]:
        """Return the factors of each layer as means over the groups, with those of the groups."""
        along = directions or {}
        found = [factors_along(group.problem, layers, along, **options) for group in self.groups]
        shares = [group.share for group in self.groups]
        return {
            name: GroupedFactors.of([of_group[name] for of_group in found], shares)
            for name in layers
        }

    def with_ggn(self, found: LayerCurvature, u: Any, v: Any) -> LayerCurvature:
        """Return curvatures with their ``h^GGN``; if it is not known, the groups are asked.

        Raises
        ------
        LayerError
            If a group does not give it.
        """
        if found.ggn is not None or not found.parts:
            return found
        name, count, parts = found.name, int(u.shape[1]), []
        for part, group, more in zip(found.parts, self.groups, self.more, strict=True):
            directions = {name: (u, v)}
            if part.more is not None:
                directions = _joined(directions, {name: more[name]})
            ggn = group.problem.curvatures(name, *directions[name], "ggn")
            further = None if part.more is None else ggn[count:]
            parts.append(replace(part, ggn=ggn[:count], more_ggn=further))
        ggn = _weighted([part.ggn for part in parts], [group.share for group in self.groups])
        return replace(found, ggn=ggn, parts=tuple(parts))

    def _of_group(
        self, number: int, directions: Directions, kind: CurvatureKind, **options: Any
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of a group, with those of the further directions in `more`."""
        problem: Any = self.groups[number].problem
        more = {name: d for name, d in self.more[number].items() if name in directions}
        if self.choice == "auto":
            yield from problem.layer_curvatures(directions, kind, more_directions=more, **options)
            return
        if self.choice == "fixed":
            yield from problem.layer_curvatures(directions, kind, **options)
            return
        counts = {name: int(u.shape[1]) for name, (u, _) in directions.items()}
        for found in problem.layer_curvatures(_joined(directions, more), kind, **options):
            is_known = isinstance(found, LayerCurvature)
            yield _parted(found, counts[found.name]) if is_known else found

    def _mean(self, parts: list[LayerCurvature | LayerError]) -> LayerCurvature | LayerError:
        known = [part for part in parts if isinstance(part, LayerCurvature)]
        if len(known) < len(parts):
            return next(part for part in parts if isinstance(part, LayerError))
        shares = [group.share for group in self.groups]
        return LayerCurvature(
            known[0].name,
            _weighted([part.values for part in known], shares),
            _joint_certificate([part.certificate for part in known], shares),
            _weighted([part.ggn for part in known], shares),
            _weighted([part.derivative for part in known], shares),
            parts=tuple(known),
        )


def _of_groups(text: str, number: int, groups: Sequence[SampleGroup]) -> str:
    return f"{text}, group {number + 1}/{len(groups)}"


def _joined(directions: Directions, more: Directions) -> dict[str, tuple[Any, Any]]:
    found = dict(directions)
    for name, pair in more.items():
        xp = array_api_compat.array_namespace(pair[0])
        both = zip(directions[name], pair, strict=True)
        u, v = (xp.concat([own, further], axis=1) for own, further in both)
        found[name] = u, v
    return found


def _parted(found: LayerCurvature, count: int) -> LayerCurvature:
    """Return a result with its further directions apart."""

    def own(values: Any) -> Any:
        return None if values is None else values[:count]

    certificate = found.certificate
    return replace(
        found,
        values=own(found.values),
        ggn=own(found.ggn),
        derivative=own(found.derivative),
        more=found.values[count:],
        more_ggn=None if found.ggn is None else found.ggn[count:],
        certificate=replace(certificate, standard_error=own(certificate.standard_error)),
    )


def _weighted(values: Sequence[Any], shares: Sequence[float]) -> npt.NDArray[np.float64] | None:
    if any(value is None for value in values):
        return None
    parts = [s * to_numpy(v).astype(np.float64) for s, v in zip(shares, values, strict=True)]
    found: npt.NDArray[np.float64] = np.sum(parts, axis=0)
    return found


def _joint_certificate(certificates: Sequence[Certificate], shares: Sequence[float]) -> Certificate:
    """Return the certificate of a mean over groups: what holds of all of them, or the worst."""
    first = certificates[0]
    errors = [each.standard_error for each in certificates]
    return replace(
        first,
        engine="+".join(dict.fromkeys(each.engine for each in certificates)),
        piecewise_linear=all(each.piecewise_linear for each in certificates),
        reason=next((each.reason for each in certificates if each.reason), ""),
        second_order=float(np.max([each.second_order for each in certificates])),
        tolerance=float(np.max([each.tolerance for each in certificates])),
        cost=float(np.dot(shares, [each.cost for each in certificates])),
        # The groups may draw the same random signs: this bound holds however errors go together.
        standard_error=_weighted(errors, shares),
    )
