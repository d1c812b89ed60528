"""Properties in every namespace: hypothesis draws the data, the fixture `xp` says where they go."""

import functools
import inspect

import pytest
from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)


def holds(*, share=1.0, **drawn):
    """Let hypothesis draw the keyword arguments of ``test(xp, …)``, in every namespace.

    Parameters
    ----------
    share : float
        Of the namespace's number of examples: less than 1 for a property that takes long.
    **drawn
        By argument, a strategy, or a function that returns one given whether arrays are compiled
        by shape, so that shapes should be few.
    """

    def decorate(test):
        @functools.wraps(test)
        def run(xp, record_property):
            count = 0

            @settings(
                deadline=None,
                max_examples=max(1 if xp.compiles else 2, int(share * xp.examples)),
                # To shrink an example that failed may compile for minutes.
                phases=QUICK if xp.compiles else settings.default.phases,
            )
            @given(**{
                name: each if isinstance(each, SearchStrategy) else each(xp.compiles)
                for name, each in drawn.items()
            })  # fmt: skip
            @named_after(test)
            def check(**values):
                nonlocal count
                test(xp, **values)
                count += 1

            check()
            record_property("examples", count)

        own = inspect.signature(lambda xp, record_property: None)
        run.__signature__ = own
        return pytest.mark.both_precisions(run)

    return decorate


def named_after(test):
    """Give a function the name of another: hypothesis keeps examples that failed by name."""

    def rename(function):
        function.__name__, function.__qualname__ = test.__name__, test.__qualname__
        return function

    return rename
