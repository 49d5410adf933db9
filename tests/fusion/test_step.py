"""The step on tiny models: weights given, measured and searched for, and the best specialist in a fusion's place."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vibethinker.data.schema import Problem, write_records
from vibethinker.fusion import fuse, measuring, search, step
from vibethinker.settings import Fusion

DOMAINS = ["algebra", "code"]
SAMPLING = {"probing": {"samples": 2, "k": 2, "max_tokens": 4}, "prompts": {}, "verification": {}, "seed": 3}


@pytest.fixture
def inputs(tmp_path, three):
    """A base, a specialist a domain with its probe, and data."""
    found = {"base": three[0], "data": tmp_path / "data"}
    for number, domain in enumerate(DOMAINS, start=1):
        folder = tmp_path / f"specialist-{domain}"
        shutil.copytree(three[number], folder / "checkpoints" / "step-000002")
        (tmp_path / f"probe-{domain}").mkdir()
        measured = {"pass_at": {"8": {"value": 0.2 * number}}}
        probe = {"selected": "step-000002", "k": 8, "validation": measured}
        (tmp_path / f"probe-{domain}" / "probe.json").write_text(json.dumps(probe))
        found |= {f"specialist-{domain}": folder, f"probe-{domain}": tmp_path / f"probe-{domain}"}
        for split in ("probe", "validation"):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            problems = [
                Problem(id=f"{split}-{domain}-{i}", domain=domain, problem=f"What is {i}?", source="test",
                        licence="MIT", answer="7") for i in range(2)
            ]  # fmt: skip
            write_records(tmp_path / "data" / split / f"{domain}.parquet", Problem, problems)
    return found


@pytest.fixture
def run(inputs, new_step):
    """A function fusion settings → the step's context and metrics."""

    def run(**settings):
        fusion = Fusion(**settings)
        given = {"fusion": fusion.semantic(), "domains": DOMAINS} | (SAMPLING if fusion.generates else {"seed": 3})
        context = new_step(given, inputs)
        return context, step.run(context)

    return run


def told(context):
    return json.loads((context.output / "fusion.json").read_text())


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items()) and a.keys() == b.keys()


def test_ties_and_dare_take_the_base_and_the_run_s_seed(run, three, tmp_path):
    for method, density in (("ties", 0.2), ("dare", 0.1)):
        context, metrics = run(method=method, weights={"code": 3, "algebra": 1})
        assert metrics == {"models": 2} and told(context)["density"] == density
        assert told(context)["weights"] == {"algebra": 0.25, "code": 0.75}
        fuse(three[1:], tmp_path / method, [1, 3], three[0], settings=Fusion(method=method), seed=3)
        # The command names models by number, the run by domain, so what dare drops differs.
        assert same(weights_of(context.output), weights_of(tmp_path / method)) == (method == "ties")


def test_pass_at_k_weighs_by_what_probing_measured(run, three, tmp_path):
    context, _ = run(method="pass_at_k")
    assert told(context)["weights"] == pytest.approx({"algebra": 1 / 3, "code": 2 / 3})
    fuse(three[1:], tmp_path / "out", [0.2, 0.4])
    assert same(weights_of(context.output), weights_of(tmp_path / "out"))


def test_specialists_that_solved_nothing_weigh_the_same(run, inputs):
    for domain in DOMAINS:
        path = inputs[f"probe-{domain}"] / "probe.json"
        path.write_text(path.read_text().replace("0.2", "0.0").replace("0.4", "0.0"))
    context, _ = run(method="pass_at_k")
    assert told(context)["weights"] == {"algebra": 0.5, "code": 0.5}
    assert any("No specialist has solved" in text for text in context.emit.warnings)


def scored(values):
    """A stand-in for measuring, which says how good a model is by its first weights."""

    def scores(self, folder, split, title):
        return values(weights_of(folder), split)

    return scores


def test_the_search_takes_the_weights_that_solve_most_and_tells_it_on_other_problems(run, three, monkeypatch, tmp_path):
    first, second = (weights_of(folder)["model.embed_tokens.weight"] for folder in three[1:])
    goal = 0.2 * first + 0.8 * second

    def values(state, split):
        distance = float((state["model.embed_tokens.weight"] - goal).norm() / goal.norm())
        return dict.fromkeys(DOMAINS, [1 / (1 + distance)] * 3)

    monkeypatch.setattr(measuring.Bench, "scores", scored(values))
    context, metrics = run(search={"trials": 12})
    found = told(context)["search"]
    assert len(found["trials"]) == 12 and found["trials"][0]["weights"] == [0.5, 0.5]
    assert found["weights"][1] == pytest.approx(0.8, abs=0.06)
    assert found["weights"] == max(found["trials"], key=lambda t: t["pass_at_k"])["weights"]
    assert found["held_out"]["gain"]["value"] > 0 and metrics["search_pass@2"] == found["held_out"]["found"]["value"]
    assert told(context)["weights"] == dict(zip(DOMAINS, found["weights"], strict=True))
    fuse(three[1:], tmp_path / "out", found["weights"])
    assert same(weights_of(context.output), weights_of(tmp_path / "out"))
    again, _ = run(search={"trials": 12})
    assert told(again) == told(context) and not list(context.output.glob(".*"))


@pytest.mark.parametrize("better", ["specialist", "fused"])
def test_a_worse_fusion_gives_way_to_the_best_specialist_and_says_so(run, three, monkeypatch, better):
    own = [weights_of(folder)["model.embed_tokens.weight"] for folder in three]

    def values(state, split):
        embedded = state["model.embed_tokens.weight"]
        is_code, is_algebra = torch.equal(embedded, own[2]), torch.equal(embedded, own[1])
        value = 0.6 if is_code else 0.5 if is_algebra else 0.4 if better == "specialist" else 0.7
        return {"algebra": [value, value], "code": [value]}

    monkeypatch.setattr(measuring.Bench, "scores", scored(values))
    context, metrics = run(fallback="best_specialist")
    found = told(context)["fallback"]
    assert found["best"] == "code" and found["probe"] == {"algebra": 0.5, "code": 0.6}
    fell = better == "specialist"
    assert metrics["fell_back"] == int(fell) and found["taken"] == ("code" if fell else None)
    assert same(weights_of(context.output), weights_of(three[2])) == fell
    assert told(context)["weights"] == ({"algebra": 0.0, "code": 1.0} if fell else {"algebra": 0.5, "code": 0.5})
    assert any("code on the validation splits" in text for text in context.emit.warnings) == fell


@pytest.mark.slow
def test_a_search_and_a_comparison_generate_with_one_engine(run, monkeypatch):
    from vibethinker.generation import opening

    opened = []
    real = opening.open_engine
    monkeypatch.setattr(opening, "open_engine", lambda *a, **k: opened.append(a) or real(*a, **k))
    context, _ = run(search={"trials": 2}, fallback="best_specialist")
    found = told(context)
    assert len(opened) == 1 and found["search"]["k"] == 2
    assert found["fallback"]["fused"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # random models solve nothing
    assert found["fallback"]["taken"] is None  # no worse is good enough
    done = [position[0] for position in context.emit.positions]
    assert done == sorted(done) and context.emit.positions[-1][1] == 8 * 4 * 2  # models, problems, samples


def test_an_interval_is_of_the_mean_over_domains():
    scores = {"a": [1.0, 0.0, 1.0, 0.0], "b": [1.0]}
    found = measuring.interval(scores)
    assert found["value"] == measuring.mean(scores) == 0.75
    assert found["low"] == 0.5 and found["high"] == 1.0
    gain = measuring.interval(scores, minus={"a": [0.5, -0.5, 0.5, -0.5], "b": [float("nan")]})
    assert gain == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_proposals_begin_uniform_spread_out_and_then_come_close():
    trials = []
    for weights in search.proposals(3, 60, 1, trials):
        trials.append({"weights": weights, "pass_at_k": -abs(weights[0] - 0.7)})
    assert trials[0]["weights"] == [1 / 3] * 3 and all(sum(t["weights"]) == pytest.approx(1) for t in trials)
    early, late = (sum(t["pass_at_k"] for t in part) / len(part) for part in (trials[1:31], trials[31:]))
    assert late > early / 2
