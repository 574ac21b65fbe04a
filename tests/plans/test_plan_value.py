"""A plan is a value: equal, hashed, copied and pickled by what it holds, whatever it has reckoned before."""

import copy
import pickle

import pytest

from moa.plans.errors import PlanError
from moa.plans.model import ModelInfo
from moa.plans.patterns import FULL, KeyDiffWindow, Rule
from moa.plans.plan import Plan, Provenance

MODEL = ModelInfo(architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=8, rope={})


def make(alpha: int = 128, **about: object) -> Plan:
    return Plan.from_rules(MODEL, {0: [FULL, Rule(alpha=alpha, beta=0)]}, defaults=Rule(alpha=256, beta=0.25), **about)


@pytest.mark.parametrize("used", [(), (0,), (1,), (0, 1)], ids=["neither used", "left used", "right used", "both used"])
def test_equality_does_not_see_what_was_reckoned(used: tuple[int, ...]) -> None:
    same, other = (make(), make()), (make(), make(alpha=192))
    for i in used:
        assert 0 < same[i].density(1000) < 1
        assert 0 < other[i].density(1000) < 1
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    assert other[0] != other[1]
    assert len({*same, *other}) == 2
    assert same[0] != make(provenance=Provenance(note="the same rules"))


def test_a_plan_loaded_again_is_equal(tmp_path) -> None:
    plan = make()
    plan.density(1000)
    plan.save(tmp_path / "plan.yaml")
    loaded = Plan.load(tmp_path / "plan.yaml")
    loaded.density(1000)
    assert loaded == plan
    assert hash(loaded) == hash(plan)
    assert Plan.from_dict(plan.to_dict()) == plan


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": Plan.model_copy,
    "model_copy, deep": lambda plan: plan.model_copy(deep=True),
    "pickle": lambda plan: pickle.loads(pickle.dumps(plan)),  # noqa: S301
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_copies_are_equal_and_as_safe(make_copy) -> None:
    plan = make()
    plan.density(1000)
    other = make_copy(plan)
    assert other == plan
    assert other.density(1000) == plan.density(1000)
    assert (other.spans(1000) == plan.spans(1000)).all()
    assert not other.reach(0).sink.flags.writeable


def test_a_copy_with_other_rules_reckons_with_those() -> None:
    plan = make()
    assert plan.density(1000) < 1
    assert plan.model_copy(update={"groups": Plan.dense(MODEL).groups}).density(1000) == 1


def test_a_fingerprint_is_of_what_a_plan_does_alone(tmp_path) -> None:
    plan, narrow = make(), Rule(alpha=128, beta=0)
    make(provenance=Provenance(note="the same rules")).save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml").fingerprint() == plan.fingerprint()
    heads = {0: [FULL, narrow], 1: [Rule(alpha=256, beta=0.25)] * 2}
    assert Plan.from_rules(MODEL, heads, defaults=narrow).fingerprint() == plan.fingerprint()  # another form of file
    others = [make(alpha=192), Plan.from_rules(MODEL, {**heads, 0: [narrow, FULL]})]
    others.append(Plan.from_rules(MODEL, {**heads, 0: [FULL, KeyDiffWindow(alpha=128, beta=0)]}))
    others.append(Plan.from_rules(MODEL, {0: heads[1], 1: heads[0]}))
    assert len({each.fingerprint() for each in [plan, *others]}) == 5
    assert plan.fingerprint() == "d65ee6d4544f86f7"  # results are kept under it


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({1: {}, "1": {}}, "plan: layers: layer 1 is there twice"),
        ({True: {}}, "plan: layers: a layer is named by its number, found True"),
        ({"01": {}}, "plan: layers: a layer is named by its number, found '01'"),
        ({1.0: {}}, "plan: layers: a layer is named by its number, found 1.0"),
    ],
)
def test_layers_of_a_document_are_plain_numbers(layers, message):
    document = Plan.dense(MODEL).to_dict()
    assert Plan.from_dict({**document, "layers": {"1": {}}}) == Plan.dense(MODEL)  # as in JSON
    with pytest.raises(PlanError, match=message):
        Plan.from_dict({**document, "layers": layers})
