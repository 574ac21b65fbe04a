import pytest

from moa.evaluation.effective import effective_context


@pytest.mark.parametrize(
    ("rates", "length"),
    [({1024: 0.9, 2048: 1.0, 4096: 0.89}, 2048), ({2048: 0.95, 1024: 1.0}, 2048), ({1024: 0.89, 2048: 1.0}, 0),
     ({1024: 0.9}, 1024), ({1024: 1.0, 2048: 0.5, 4096: 1.0}, 1024)],
)  # fmt: skip
def test_the_longest_length_up_to_which_nearly_all_is_found(rates, length):
    rows = [{"length": n, "row": "plan", "density": 1.0, "passkey": {"rate": rate}} for n, rate in rates.items()]
    other = [{"length": 1024, "row": "dense", "text": {"perplexity": 9.0}, "passkey": {"rate": 0.9}}]
    assert effective_context([*rows, *other]) == {"passkey": {"plan": length, "dense": 1024}}


def test_tasks_without_a_rate_have_none():
    assert effective_context([{"length": 1024, "row": "dense", "text": {"perplexity": 9.0}}]) == {}
