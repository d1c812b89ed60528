"""Which engine serves which layer, with engines that only say prices and refusals."""

from dataclasses import dataclass

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.curvature.certificate import Certificate
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    Declined,
    LayerFinding,
    only_gauss_newton,
    second_order_share,
)
from spectral_core.curvature.planner import curvatures_by
from spectral_core.curvature.problem import LayerInfo


@dataclass(frozen=True)
class Layer:
    info: LayerInfo


def layers(names):
    return [Layer(LayerInfo(name, "linear", (3, 2))) for name in names]


class Toy(CurvatureEngine):
    """Serves at a price for each layer and one to begin with; keeps what ran together."""

    def __init__(self, name, each=1.0, first=0.0, **options):
        self.name, self.each, self.first = name, each, first
        self.declined, self.failing, self.dear = {}, {}, ""
        self.runs = []
        for option, value in options.items():
            setattr(self, option, value)

    def declines(self, layer, request):
        return self.declined.get(layer.info.name, "")

    def price(self, layers, request):
        return self.first + self.each * len(layers)

    def too_dear(self, request):
        return self.dear

    def run(self, layers, request):
        self.runs.append("".join(layer.info.name for layer in layers))
        for layer in request.todo(layers):
            name = layer.info.name
            if failure := self.failing.get(name):
                yield failure
            else:
                yield LayerFinding(name, np.ones(1), reason=f"own reason of {self.name}")


def request_of(names, **options):
    directions = {name: (np.ones((3, 1)), np.ones((2, 1))) for name in names}
    return CurvatureRequest(directions, **options)


def planned(engines, names="abc", **options):
    """Return by layer the engine and its reason, or the words of the error, and the findings."""
    found = list(curvatures_by(engines, layers(names), request_of(names, **options)))
    told = {}
    for each in found:
        if isinstance(each, sc.LayerError):
            told[each.layer] = each.reason
        else:
            told[each.name] = (each.certificate.engine, each.certificate.reason)
    assert len(told) == len(found)
    return told


def test_the_cheapest_engine_serves_all():
    """A shared price is weighed against what later engines ask for the same layers."""
    for first, expected in ((2.0, "shared"), (2.5, "shared"), (3.5, "single")):
        engines = [Toy("shared", 0.5, first), Toy("single", 2.0), Toy("dear", 5.0)]
        assert {engine for engine, _ in planned(engines, "ab").values()} == {expected}
    assert engines[1].runs == ["ab"] and not engines[0].runs and not engines[2].runs


def test_of_later_engines_the_cheapest_that_serves_counts():
    engines = [Toy("shared", 0.0, 7.0), Toy("dear", 5.0), Toy("single", 2.0)]
    assert {engine for engine, _ in planned(engines).values()} == {"single"}
    engines[2].declined = {"a": "no", "b": "no"}
    assert {engine for engine, _ in planned(engines).values()} == {"shared"}


def test_what_an_engine_declines_goes_to_the_next_with_the_reason():
    engines = [Toy("first"), Toy("second"), Toy("last")]
    engines[0].declined = {"a": "gelu", "b": "tanh"}
    engines[1].declined = {"b": "hidden"}
    assert planned(engines) == {
        "a": ("second", "gelu"),
        "b": ("last", "hidden"),
        "c": ("first", "own reason of first"),
    }


@pytest.mark.parametrize(("dear", "reason"), [("", "own reason of single"), ("costs 9", "costs 9")])
def test_why_an_engine_was_too_dear(dear, reason):
    engines = [Toy("shared", 0.0, 9.0, dear=dear), Toy("single")]
    assert planned(engines)["a"] == ("single", reason)


def test_independent_engines_are_weighed_layer_by_layer():
    class Priced(Toy):
        def price(self, layers, request):
            return sum({"a": 1.0, "b": 9.0, "c": 3.0}[layer.info.name] for layer in layers)

    for independent, expected in ((True, "aBc"), (False, "ABC")):
        engines = [Priced("lower", independent=independent), Toy("upper", 3.0)]
        found = planned(engines)
        assert "".join(n if found[n][0] == "lower" else n.upper() for n in "abc") == expected


def test_independent_engines_that_share_a_pass_run_once():
    """They are weighed layer by layer all the same; what fails joins those that were left."""
    for shares, expected in ((True, ["abc"]), (False, ["a", "b", "c"])):
        last = Toy("last", 9.0, independent=True)
        engine = Toy("shared", independent=True, shares_a_pass=shares)
        planned([engine, last], engine="shared")
        assert engine.runs == expected
    engine.failing = {"b": Declined("b", "meets")}
    assert planned([engine, last])["b"] == ("last", "meets") and last.runs == ["b"]


def test_no_earlier_engine_is_weighed_against_a_rough_price():
    for rough, expected in ((False, "guess"), (True, "shared")):
        engines = [Toy("shared", 0.0, 7.0), Toy("guess", 2.0, rough_price=rough), Toy("last", 3.0)]
        assert {engine for engine, _ in planned(engines).values()} == {expected}
    engines[0].first = 10.0
    assert {engine for engine, _ in planned(engines).values()} == {"guess"}
    engines[1].each = 4.0
    assert {engine for engine, _ in planned(engines).values()} == {"last"}


def test_what_fails_in_a_run_goes_on():
    """Layers that fell run one by one, so that which ones fell changes nothing for the others."""
    engines = [Toy("first"), Toy("second"), Toy("last", 9.0)]
    engines[0].declined = {"d": "curved"}
    engines[0].failing = {name: Declined(name, f"{name} meets", "refused.") for name in "ab"}
    engines[1].declined = {"b": "hidden"}
    assert planned(engines, "abcd") == {
        "a": ("second", "a meets"),
        "b": ("last", "hidden"),
        "c": ("first", "own reason of first"),
        "d": ("second", "curved"),
    }
    assert [engine.runs for engine in engines] == [["abc"], ["d", "a"], ["b"]]
    engines[1] = Toy("second", independent=True)
    planned(engines, "abcd")
    assert engines[1].runs == ["dab"]


def test_an_error_of_a_layer_is_final():
    engines = [Toy("first", failing={"a": sc.LayerError("a", "has none.")}), Toy("last")]
    assert planned(engines, "a") == {"a": "has none."} and not engines[1].runs


def test_where_nothing_serves_all_reasons_are_told():
    engines = [
        Toy("first", declined={"a": "Not this way."}),
        Toy("last", declined={"a": "nor that."}),
    ]
    assert planned(engines, "ab") == {
        "a": "Not this way. And nor that.",
        "b": ("first", "own reason of first"),
    }
    silent = Toy("first", failing={"a": Declined("a", "")})
    assert planned([silent], "a") == {"a": "no engine gives its curvature."}


def test_an_engine_by_name():
    """It computes all layers, is not asked what it declines, and refuses in its own words."""
    engines = [Toy("first"), Toy("second", 99.0, declined={"a": "no"}), Toy("last")]
    engines[1].failing = {"b": Declined("b", "meets", "choose another."), "c": Declined("c", "odd")}
    assert planned(engines, engine="second") == {
        "a": ("second", "own reason of second"),
        "b": "choose another.",
        "c": ("last", "odd"),
    }
    assert not engines[0].runs


def test_an_engine_on_request():
    engines = [Toy("random", 0.0, on_request=True), Toy("first"), Toy("spare", on_request=True)]
    assert planned(engines, "a")["a"][0] == "first"
    assert planned(engines, "a", engine="random")["a"][0] == "random"
    engines[0].failing = {"a": Declined("a", "meets")}
    assert planned(engines, "a", engine="random") == {"a": ("first", "meets")}
    assert not engines[2].runs


def test_done_layers_are_planned_with_and_not_yielded():
    engines = [Toy("shared", 0.0, 2.5), Toy("single")]
    assert planned(engines, done=("a", "b")) == {"c": ("shared", "own reason of shared")}
    assert engines[0].runs == ["abc"]
    engines[0].runs.clear()
    assert planned(engines, done="abc") == {} and engines[0].runs == []


def test_done_layers_of_a_group_keep_the_engine_from_running():
    engines = [Toy("first", declined={"c": "curved"}), Toy("last")]
    assert planned(engines, done=("a", "b")) == {"c": ("last", "curved")}
    assert not engines[0].runs and engines[1].runs == ["c"]


def test_where_engines_share_nothing_each_layer_is_finished_before_the_next():
    engines = [Toy("first", independent=True), Toy("last", independent=True)]
    asked = []
    engines[0].declines = lambda layer, request: asked.append(layer.info.name) or "no"
    found = curvatures_by(engines, layers("abc"), request_of("abc", done="b"))
    assert next(found).name == "a" and asked == ["a"]
    assert [each.name for each in found] == ["c"] and asked == ["a", "c"]


def test_nothing_is_asked_for():
    assert list(curvatures_by([Toy("first")], [], request_of(""))) == []


def test_defaults_of_an_engine():
    """Of itself an engine declines nothing and is never preferred."""

    class Plain(CurvatureEngine):
        name = "plain"
        run = Toy.run

        def __init__(self):
            self.runs, self.failing = [], {}

    (layer,), request = layers("a"), request_of("a")
    assert Plain().declines(layer, request) == Plain().too_dear(request) == ""
    assert planned([Plain(), Toy("cheap", 5.0)], "a")["a"][0] == "cheap"
    assert planned([Plain()], "a")["a"][0] == "plain"
    with pytest.raises(TypeError, match="abstract"):
        CurvatureEngine()


def test_one_writer_of_certificates():
    values, ggn, slopes, error = (np.full(2, float(i)) for i in range(4))
    finding = LayerFinding(
        "w", values, ggn, slopes, error, "kinks", True, 1e-9, 1e-6, predicted_cost=3.0, cost=4.0
    )
    expected = Certificate(
        "columns", True, "kinks", 1e-9, 1e-6, predicted_cost=3.0, cost=4.0, standard_error=error
    )
    found = finding.certified("columns", "hessian")
    assert found.certificate == expected and found.name == "w"
    assert found.values is values and found.ggn is ggn and found.derivative is slopes
    assert finding.certified("columns", "hessian", "dear").certificate.reason == "dear"
    assert finding.certified("columns", "ggn").ggn is values


def test_a_request_counts_and_sorts_out():
    request = request_of("abc", done=("b",))
    given = layers("abc")
    assert [layer.info.name for layer in request.todo(given)] == ["a", "c"]
    assert request.n_directions(given) == 3 and request.n_directions(given[:1]) == 1
    assert request.progress_callback("nothing") is None


def test_the_words_of_a_refusal():
    assert only_gauss_newton("columns", "hessian", "GeluBackward0") == (
        "engine 'columns' does not give its hessian curvature (GeluBackward0); choose "
        "engine='auto' or curvature='ggn'."
    )
    assert only_gauss_newton("monte-carlo", "ggn", "meets") == (
        "engine 'monte-carlo' does not give its ggn curvature (meets); choose engine='auto'."
    )


def test_the_share_of_the_second_order_part():
    assert second_order_share(np.array([1.0, -6.0]), np.array([2.0, 3.0])) == 2.0
    assert np.isnan(second_order_share(np.array([1.0, 0.0]), np.array([2.0, 0.0])))
