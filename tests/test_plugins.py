"""Plugins of another distribution: each example is found by its entry point and used by the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.slack import Slack
from vibethinker import plugins
from vibethinker.config import load
from vibethinker.errors import ConfigurationError
from vibethinker.plan import build, plugin_notes

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
MICRO = ("--profile", "micro", "--set", "signal.stages=[]")
# A plan of every kind of step that a plugin decides.
USED = {
    "domains": ["remainders", "algebra", "statistics"],
    "spectrum": {"fusion": {"method": "median"}},
    "signal": {"stages": [{"name": "short", "context": 96, "steps": 1, "reward": "concise"}]},
}


def install(source: Path, target: Path) -> Path:
    """What `pip install --target` makes of a distribution."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv, "uv is missing: `make test` installs it"
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python"]
    subprocess.run([*command, sys.executable, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples installed."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, folder / "source")  # building leaves files beside it
    return install(folder / "source", folder / "installed")


def distribution(folder: Path, name: str, entries: str, version: str = "1.0", module: str = "") -> Path:
    """A folder as if a distribution were installed in it: its metadata, and one module."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entries)
    (folder / f"{name.replace('-', '_')}.py").write_text(module)
    return folder


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that has this process, and those that it starts, find what is installed in folders."""

    def find(*folders: Path) -> None:
        for folder in folders:
            monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        plugins.installed.cache_clear()

    yield find
    plugins.installed.cache_clear()


def vibethinker(*arguments: object, path: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vibethinker", *map(str, arguments)]
    environ = os.environ | {"PYTHONPATH": str(path)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env=environ)


# ---- the examples, each used ----


def test_an_example_is_a_file_of_at_most_40_lines() -> None:
    files = sorted((EXAMPLES / "vibethinker_examples").glob("*.py"))
    assert len(files) == 1 + len(plugins.GROUPS)
    assert all(len(file.read_text().splitlines()) <= 40 for file in files)


def test_a_domain_s_problems_are_prepared_with_verified_traces(examples: Path, tmp_path: Path) -> None:
    settings = ("--set", "domains=[remainders]", "--output", "made")
    done = vibethinker("data", "prepare", *MICRO, *settings, path=examples, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "made" / "card.json").read_text())
    counts = card["domains"]["remainders"]
    assert counts["traces"] > counts["train"] > 100
    assert counts.get("unverified", 0) == 0


def test_a_reward_judges_a_stage_s_rollouts(examples: Path, beside: Callable[..., None]) -> None:
    from vibethinker.data.schema import Problem
    from vibethinker.training.rollouts import RolloutGrading
    from vibethinker.verification import Verifier

    beside(examples)
    problem = Problem(id="a", domain="algebra", problem="1+1?", source="here", licence="MIT", answer="2")
    texts = [r"\boxed{2}", r"\boxed{3}", "word " * 80 + r"\boxed{2}", "2", r"\boxed{2.0}"]
    with Verifier() as verifier:
        grading = RolloutGrading(verifier, [problem], lambda text: None, reward="concise")
        assert grading(texts, [0] * len(texts)) == [True, False, False, False, False]
        assert verifier.statistics.values()["concise/correct"] == 1


def test_a_fusion_method_fuses(examples: Path, tmp_path: Path, new_tiny_model, tiny_tokenizer) -> None:
    import torch
    from safetensors.torch import load_file

    from vibethinker.models import save_model

    for seed in range(3):
        save_model(new_tiny_model(seed), tiny_tokenizer, tmp_path / str(seed))
    done = vibethinker("fuse", "0", "1", "2", "--output", "out", "--method", "median", path=examples, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = [load_file(tmp_path / str(seed) / "model.safetensors") for seed in range(3)]
    fused = load_file(tmp_path / "out" / "model.safetensors")
    for name, found in fused.items():
        assert torch.equal(found, torch.stack([model[name] for model in models]).median(0).values), name
    two = vibethinker("fuse", "0", "1", "--output", "two", "--method", "median", path=examples, cwd=tmp_path)
    assert two.returncode == 2 and "use the method linear" in two.stderr


def test_a_benchmark_is_measured_by_its_protocol(
    examples: Path, tmp_path: Path, beside: Callable[..., None], tiny_model_folder: Path
) -> None:
    from vibethinker.cli import main

    beside(examples)
    words = ["evaluate", str(tiny_model_folder), "--benchmark", "clock", "--limit", "2", "--max-tokens", "4"]
    main([*words, "--output", str(tmp_path / "scores.json")])  # in this process, which has torch
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["sets"]["clock"]["settings"]["samples"] == 4
    assert found["sets"]["clock"]["source"]["path"].endswith("clock.jsonl")
    assert [outcome["id"] for outcome in found["outcomes"]] == ["clock-clock-1", "clock-clock-2"]


def test_a_notification_is_posted_and_its_address_told_nobody(examples: Path, tmp_path: Path, slack: Slack) -> None:
    environ = {"EXAMPLE_WEBHOOK_URL": slack.url, "PREFECT_API_URL": ""}
    done = vibethinker("notify", "test", "--channel", "webhook", path=examples, cwd=tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Posted to a webhook.\n"
    [post] = slack.posts
    assert post["kind"] == "test" and post["title"] == "vibethinker can be heard"


# ---- fingerprints and processes ----


def test_only_fingerprints_of_steps_that_a_plugin_decides_have_its_version(
    examples: Path, tmp_path: Path, beside: Callable[..., None]
) -> None:
    beside(examples)
    plain = build(load("micro", environ={}), tmp_path)
    assert not any("plugins" in step.settings for step in plain.steps)
    first = build(load("micro", partial=USED, environ={}), tmp_path)
    assert [step.id for step in first.steps if "plugins" in step.settings] == ["data", "fusion", "signal-1"]
    assert plugin_notes(first) == [
        "data, fusion, signal-1: decided by plugins of vibethinker-examples 1.0, which the fingerprint names."
    ]
    text = (next(examples.glob("*.dist-info")) / "entry_points.txt").read_text()
    beside(distribution(tmp_path / "newer", "vibethinker-examples", text, version="1.1"))
    second = build(load("micro", partial=USED, environ={}), tmp_path)
    assert all(second[id].fingerprint != first[id].fingerprint for id in ("data", "fusion", "signal-1"))


def test_a_plan_names_the_plugins_and_loads_nothing_heavy(examples: Path, tmp_path: Path) -> None:
    (tmp_path / "used.yaml").write_text(yaml.safe_dump(USED))
    look = (
        "import sys; from vibethinker.cli import cli; "
        "cli.main(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'vibethinker_examples'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", look, "plan", "--profile", "micro", "--config", "used.yaml"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env=os.environ | {"PYTHONPATH": str(examples)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Note: data, fusion, signal-1: decided by plugins of vibethinker-examples 1.0" in done.stdout


def test_a_step_whose_interpreter_has_another_version_is_refused(
    examples: Path, tmp_path: Path, beside: Callable[..., None]
) -> None:
    from vibethinker.requirements import missing, steps_interpreter, visible_gpus

    beside(examples)
    config = load("micro", partial=USED | {"worker": {"env": {"PYTHONPATH": str(tmp_path)}}}, environ={})
    told = list(missing(config, steps_interpreter(config), visible_gpus()))
    assert any("names the plugins of vibethinker-examples 1.0" in one and "has none" in one for one in told)
    assert list(plugins.differences({"a": "1"}, {"a": "1"}, "it")) == []


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("partial", "words"),
    [
        ({"spectrum": {"fusion": {"method": "medain"}}}, ("spectrum.fusion.method", "did you mean 'median'")),
        (
            {"signal": {"stages": [{"name": "a", "context": 96, "reward": "concice"}]}},
            ("signal.stages.0.reward", "did you mean 'concise'"),
        ),
        ({"domains": ["remainder"]}, ("'remainder'", "remainders", "data.source")),
        ({"notifications": {"channels": ["webhok"]}}, ("notifications.channels.0", "did you mean 'webhook'")),
        (
            {"data": {"source": "files", "evaluation": ["clok"]}},
            ("there is no benchmark 'clok'", "did you mean 'clock'"),
        ),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(
    examples: Path, beside: Callable[..., None], partial: dict, words: tuple[str, ...]
) -> None:
    beside(examples)
    with pytest.raises(ConfigurationError) as told:
        load("micro", partial=partial, environ={})
    assert all(word in str(told.value) for word in words), told.value


def test_a_plugin_that_can_not_be_imported_is_told_with_its_distribution(
    tmp_path: Path, beside: Callable[..., None]
) -> None:
    from vibethinker import doctor
    from vibethinker.verification import Item, Verifier

    entries = "[vibethinker.rewards]\nbroken = bad_one:judge\n"
    beside(distribution(tmp_path, "bad-one", entries, "0.3", "import a_module_that_is_not_there\n"))
    words = r"'broken' of bad-one 0\.3 can't be loaded \(ModuleNotFoundError.*install what it needs"
    with pytest.raises(ConfigurationError, match=words):
        plugins.load(plugins.REWARDS, "broken")
    with Verifier() as verifier, pytest.raises(ConfigurationError, match=words):
        verifier.grade([Item("broken", "2", "2")])
    assert (doctor.added().state, doctor.added().mend) == (
        "failure", "install what it needs, or mend or uninstall bad-one",
    )  # fmt: skip


def test_a_reward_that_fails_hangs_or_can_not_tell_spoils_no_other_verdict(
    tmp_path: Path, beside: Callable[..., None]
) -> None:
    from vibethinker.verification import Item, Verifier

    code = (
        "def judge(response, gold, problem):\n"
        "    if response == 'fails': raise ValueError\n"
        "    while response == 'hangs': pass\n"
        "    return None if response == 'unknown' else response == gold\n"
    )
    beside(distribution(tmp_path, "odd", "[vibethinker.rewards]\nodd = odd:judge\n", module=code))
    texts = ("2", "fails", "unknown", "hangs", "3")
    with Verifier(math_seconds=0.5) as verifier:
        found = [one.verdict for one in verifier.grade([Item("odd", text, "2") for text in texts])]
    assert found == ["correct", "error", "error", "timeout", "wrong"]


def test_one_name_of_two_distributions_is_refused_where_it_is_used(tmp_path: Path, beside: Callable[..., None]) -> None:
    entries = "[vibethinker.fusion]\nmean = a:A\n"
    beside(distribution(tmp_path / "a", "one", entries), distribution(tmp_path / "b", "other", entries, "2.0"))
    with pytest.raises(ConfigurationError, match=r"'mean' is brought by (one 1.0|other 2.0) and .*uninstall all but"):
        plugins.find(plugins.FUSION, "mean")


def test_a_plugin_can_not_take_a_name_of_the_recipe_s_own(tmp_path: Path, beside: Callable[..., None]) -> None:
    from vibethinker import doctor
    from vibethinker.fusion.methods import named
    from vibethinker.fusion.methods.linear import Linear

    beside(distribution(tmp_path, "taker", "[vibethinker.fusion]\nlinear = taker:Linear\n"))
    assert named("linear") is Linear
    assert doctor.added().state == "warning"


def test_a_benchmark_that_says_too_little_is_told_with_its_distribution(
    tmp_path: Path, beside: Callable[..., None]
) -> None:
    from vibethinker.evaluation.benchmarks import load_sets

    module = "A = {'source': {'path': 'x'}}\nB = {'source': {'pth': 'x'}, 'protocol': dict.fromkeys((\n"
    module += "    'samples', 'temperature', 'top_p', 'max_tokens'), 1)}\n"
    entries = "[vibethinker.benchmarks]\nfew = few:A\nodd = few:B\n"
    beside(distribution(tmp_path, "few", entries, module=module))
    for name, words in (("few", "benchmark 'few' of few 1.0 must be a mapping"), ("odd", "no setting 'pth'")):
        with pytest.raises(ConfigurationError, match=words):
            load_sets([name], load("micro", environ={}))


def test_a_channel_that_fails_is_told_without_its_address_and_keeps_no_other_back(
    examples: Path, tmp_path: Path, beside: Callable[..., None], slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.channels import Channels
    from tasks.messages import Message
    from vibethinker.operations import Notifications

    beside(examples, distribution(tmp_path, "mute", "[vibethinker.notifications]\nmute = mute:absent\n"))
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.url)
    monkeypatch.setenv("EXAMPLE_WEBHOOK_URL", f"{slack.url}/elsewhere")
    monkeypatch.setattr("httpx.post", refused)
    settings = Notifications(channels=("mute", "webhook", "slack"))
    mute, webhook = Channels.of(settings).send(Message("test", "hear this", "all"))
    assert "mute did not take the message" in mute and "mute 1.0 can't be loaded" in mute
    assert "webhook did not take the message" in webhook and "hook-of-the-test" not in webhook
    assert len(slack.posts) == 1


def refused(address: str, **options: object) -> None:
    """A server that nobody is at."""
    raise ConnectionError(f"nobody at {address}")


def test_the_built_in_table_names_what_is_there() -> None:
    for group, some in plugins.BUILT_IN.items():
        assert all(plugins.load(group, name) is not None for name in some)
