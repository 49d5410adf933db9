"""The report step: what report.json says about known outcomes."""

from __future__ import annotations

import json

import pytest

from tests.reporting.synthetic import ACCURACY, DOMAINS, SyntheticRun, write
from vibethinker.data.schema import Problem, write_records
from vibethinker.errors import DataError
from vibethinker.evaluation.estimators import pass_at_k
from vibethinker.reporting import html, step
from vibethinker.reporting.highlights import highlights
from vibethinker.reporting.results import Model, Results, warnings


def rows(domain: str, corrects: list[int], samples: int = 8) -> list[dict]:
    return [
        {"set": domain, "id": f"{domain}-{i}", "domain": domain, "correct": c, "samples": samples, "verdicts": [""] * 8}
        for i, c in enumerate(corrects)
    ]


def find(comparisons: list[dict], **wanted: str) -> list[dict]:
    return [c for c in comparisons if all(c[key] == value for key, value in wanted.items())]


def test_two_runs_of_the_step_write_the_same_bytes_and_no_path(synthetic, tmp_path):
    first, second = (synthetic.context(tmp_path / name) for name in ("one", "two"))
    assert step.run(first) == step.run(second)
    text = (tmp_path / "one" / "report.json").read_bytes()
    assert text == (tmp_path / "two" / "report.json").read_bytes()
    assert str(synthetic.root).encode() not in text


def test_means_are_over_the_problems_of_a_scope(report, synthetic):
    outcomes = [json.loads(line) for line in (synthetic.root / "evaluation-base" / "outcomes.jsonl").open()]
    math = [o for o in outcomes if o["set"] in ("algebra", "geometry")]
    means = next(m for m in report["models"] if m["id"] == "base")["means"]
    assert means["math"]["avg@8"]["value"] == pytest.approx(sum(o["correct"] / 8 for o in math) / len(math))
    assert means["math"]["pass@8"]["value"] == pytest.approx(
        sum(pass_at_k(8, o["correct"], 8) for o in math) / len(math)
    )
    assert means["math"]["avg@8"]["problems"] == len(math) == 40
    assert set(means) == {*DOMAINS, "math", "code", "all"}


def test_a_specialist_has_a_mean_only_where_it_was_measured(report):
    means = next(m for m in report["models"] if m["id"] == "specialist-algebra")["means"]
    assert set(means) == {"algebra"}


def test_every_comparison_of_the_recipe_is_there(report):
    comparisons = report["comparisons"]
    assert {c["candidate"] for c in find(comparisons, kind="specialist")} == {f"specialist-{d}" for d in DOMAINS}
    assert {c["scope"] for c in find(comparisons, kind="fusion")} == {*DOMAINS, "math", "all"}
    assert {(c["baseline"], c["scope"]) for c in find(comparisons, kind="fusion-specialist")} == {
        (f"specialist-{d}", d) for d in DOMAINS
    }
    assert {c["candidate"] for c in find(comparisons, kind="stage", baseline="fusion")} == {"signal-1", "signal-2"}
    (gain,) = find(comparisons, kind="stage", candidate="signal-2", scope="math", metric="avg@8")
    assert gain["low"] < gain["difference"] < gain["high"] and gain["problems"] == 40
    assert gain["significant"] is (gain["p"] < 0.05)
    assert {c["candidate"] for c in find(comparisons, kind="final", baseline="base")} == {"signal-2"}


def test_published_benchmarks_have_scores_of_their_own_whatever_their_domain():
    """AIME says no domain, MATH-500 says those that are trained, and HumanEval is code, which isn't trained here."""

    def measured(correct: int) -> list[dict]:
        aime = [{**row, "domain": "math"} for row in rows("aime24", [correct] * 6)]
        math500 = [{**row, "domain": ("algebra", "geometry")[i % 2]} for i, row in enumerate(rows("math500", [4] * 6))]
        return [*aime, *math500, *[{**row, "domain": "code"} for row in rows("humaneval", [1] * 6)]]

    models = [Model("base", measured(0)), Model("fusion", measured(2)), Model("signal-1", measured(6))]
    results = Results(models, ["algebra", "geometry"], ["algebra", "geometry"], 8)
    means = {scope: found["avg@8"]["value"] for scope, found in results.means("signal-1").items()}
    assert means == {
        "algebra": 0.5, "geometry": 0.5, "math": (6 * 6 / 8 + 6 * 4 / 8) / 12, "code": 1 / 8,
        "all": (6 * 6 + 6 * 4 + 6) / 8 / 18, "aime24": 6 / 8, "math500": 0.5, "humaneval": 1 / 8,
    }  # fmt: skip
    (gain,) = find(results.comparisons(), kind="final", scope="aime24", metric="avg@8")
    assert (gain["difference"], gain["problems"], gain["significant"]) == (6 / 8, 6, True)
    assert highlights(results.comparisons())[0][1]["scope"] == "math"


def test_a_benchmark_called_as_a_group_is_told_apart():
    models = [Model("base", [{**row, "domain": "algebra"} for row in rows("math", [4])] + rows("geometry", [8]))]
    means = Results(models, ["algebra", "geometry"], ["algebra", "geometry"], 8).means("base")
    assert means["math"]["avg@8"]["value"] == 0.75 and means["set math"]["avg@8"]["value"] == 0.5
    assert "set geometry" not in means


def test_a_difference_is_paired_by_problem():
    ease = [0, 2, 4, 6, 8, 1, 3, 5]
    models = [Model("base", rows("algebra", ease)), Model("fusion", rows("algebra", [min(8, c + 1) for c in ease]))]
    (gain,) = find(Results(models, ["algebra"], ["algebra"], 8).comparisons(), metric="avg@8", scope="math")
    assert gain["difference"] == pytest.approx(7 / 64) and gain["high"] - gain["low"] < 0.1


def test_pass_at_k_curves_end_at_the_number_of_samples():
    results = Results([Model("base", rows("algebra", [1, 0]))], ["algebra"], ["algebra"], 8)
    assert results.curves("base")["algebra"] == {"1": 1 / 16, "2": 1 / 8, "4": 1 / 4, "8": 1 / 2}


def test_a_fused_model_below_the_best_specialist_is_warned_of_with_its_interval():
    models = [
        Model("base", rows("algebra", [1] * 20)),
        Model("specialist-algebra", rows("algebra", [0, 1] * 10)),
        Model("specialist-geometry", rows("algebra", [8] * 20)),
        Model("fusion", rows("algebra", [0] * 20)),
    ]
    results = Results(models, ["algebra"], ["algebra"], 8)
    found = warnings(results, results.comparisons())
    assert "below the best specialist's on algebra (" in found[0] and "−100.0 points" in found[0]
    assert "specialist geometry: " in found[0]  # the best of both


def test_a_stage_that_loses_surely_and_truncation_are_warned_of():
    scores = {"algebra": {"truncated": {"value": 0.5}}}
    models = [
        Model("base", rows("algebra", [4] * 20)),
        Model("fusion", rows("algebra", [4] * 20)),
        Model("signal-1", rows("algebra", [2] * 20), scores),
    ]
    results = Results(models, ["algebra"], ["algebra"], 8)
    text = " ".join(warnings(results, results.comparisons()))
    assert "worse than the base model" in text and "worse than the fused model" in text
    assert "cut off at the length limit" in text and "signal-1 up to 50%" in text


def test_results_that_only_rise_give_no_warning():
    models = [Model("base", rows("algebra", [1] * 20)), Model("fusion", rows("algebra", [2] * 20))]
    results = Results(models, ["algebra"], ["algebra"], 8)
    assert warnings(results, results.comparisons()) == []


def test_problems_whose_every_sample_was_left_out_are_left_out(tmp_path):
    models = [Model("base", [*rows("algebra", [8]), *rows("algebra", [0], samples=0)])]
    assert Results(models, ["algebra"], ["algebra"], 8).means("base")["algebra"]["avg@8"]["value"] == 1.0


def test_curves_keep_steps_and_histograms(report):
    assert report["curves"]["specialist-code"]["loss"]["step"] == list(range(1, 31))
    assert report["curves"]["signal-1"]["p_histogram"]["value"][0] == [39, 3, 2, 1, 0, 1, 2, 1]


def test_samples_show_right_wrong_and_truncated_answers_beside_the_base(report):
    assert {s["sort"] for s in report["samples"]} == {"right", "wrong", "truncated"}
    for sample in report["samples"]:
        assert (sample["final"]["verdict"] == "correct") is (sample["sort"] == "right")
        assert sample["base"]["text"]
    keys = [(s["set"], s["sort"]) for s in report["samples"]]
    assert max(map(keys.count, keys)) <= step.SAMPLES_A_SET


def test_the_metrics_carry_the_scores(synthetic, tmp_path):
    metrics = step.run(synthetic.context(tmp_path / "out"))
    assert list(metrics["scores"]) == list(ACCURACY)
    assert metrics["scores"]["signal-2"]["math"]["avg@8"]["value"] > metrics["scores"]["base"]["math"]["avg@8"]["value"]


def test_only_what_there_is_is_reported(tmp_path):
    run = SyntheticRun(tmp_path / "in", accuracy={"base": 0.1})
    run._data()
    run._evaluation("base")
    report = run.report(tmp_path / "out")
    assert report["final"] == "base" and report["comparisons"] == [] and report["probes"] == {}


def test_an_outcome_of_an_unknown_problem_is_refused(tmp_path):
    run = SyntheticRun(tmp_path / "in", accuracy={"base": 0.1})
    run._data()
    run._evaluation("base")
    write_records(run.root / "data" / "evaluation" / "algebra.parquet", Problem, [])
    with pytest.raises(DataError, match="algebra-0"):
        run.report(tmp_path / "out")


def test_a_run_without_evaluations_is_refused(tmp_path):
    write(tmp_path / "in" / "data" / "card.json", {})
    with pytest.raises(DataError, match="no evaluation"):
        SyntheticRun(tmp_path / "in").report(tmp_path / "out")


def test_the_page_shows_a_benchmark_with_its_gain_and_its_curve(synthetic, tmp_path, summary, config):
    """The synthetic run's sets under the names of benchmarks."""
    run = SyntheticRun(tmp_path / "in", accuracy={"base": 0.1, "fusion": 0.2, "signal-1": 0.4}).build()
    for model in run.accuracy:
        file = run.root / f"evaluation-{model}" / "outcomes.jsonl"
        file.write_text(file.read_text().replace('"set": "algebra"', '"set": "aime24"'))
    evaluation = run.root / "data" / "evaluation"
    (evaluation / "algebra.parquet").rename(evaluation / "aime24.parquet")
    report = run.report(tmp_path / "out")
    assert report["benchmarks"] == ["aime24"]
    names = html.model_names(report)
    table = html.score_tables(report, names)[0]
    at = table["scopes"].index("aime24")
    cells = {row["name"]: row["cells"][at] for row in table["rows"]}
    assert "gain" in cells["Signal 1 (math)"] and cells["Base"]["value"]
    assert any("Pass@K, aime24" in figure for figure in html._figures(report, names)["pass_at_k"])
    assert "aime24" in html.render(report, summary, config)
