from moa.hf import text


def long_paragraphs(texts: list[str]) -> set[str]:
    return {p.strip() for t in texts for p in t.split("\n\n") if len(p.strip()) >= 200}


def test_parts_share_no_paragraph_and_cover_all() -> None:
    calibration, evaluation = text.split("calibration"), text.split("evaluation")
    assert not long_paragraphs(calibration) & long_paragraphs(evaluation)
    assert sorted(calibration + evaluation) == sorted(text.documents().values())


def test_both_parts_hold_enough_for_long_windows() -> None:
    assert sum(map(len, text.split("calibration"))) > 150_000
    assert sum(map(len, text.split("evaluation"))) > 80_000
    assert max(map(len, text.split("evaluation"))) > 40_000
