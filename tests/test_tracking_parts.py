"""What tracking is made of and needs no store: the journal on the disk, addresses as they may be shown, samples of the
machine, and what is chosen of data and generations."""

from __future__ import annotations

import resource
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from vibethinker.artifacts import Artifact
from vibethinker.redaction import passwords, redact
from vibethinker.tracking import samples, system, without_password
from vibethinker.tracking.datasets import of_step, whole
from vibethinker.tracking.journal import Journal, read_all
from vibethinker.tracking.registry import better


def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"op": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel then takes a part of what is written, as of a disk that fills up.
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 4, before[1]))
    try:
        journal.append({"op": 2})
        journal.append({"op": 3})
        assert [operation["op"] for operation in read_all(tmp_path)] == [1]
        assert not journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.append({"op": 4})
    assert journal.flush()
    journal.close()
    journal.append({"op": 5})  # by a step that didn't leave in time
    assert [operation["op"] for operation in read_all(tmp_path)] == [1, 2, 3, 4]


def test_what_a_store_repeats_of_its_password_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token")
    uri = "http://me:pass%2Fword@mlflow:5000/path?x=1"
    sent = b64encode(b"me:pass/word").decode()
    said = f"403: {uri} said Basic {sent}, pass/word and Bearer the-token"
    assert redact(said, passwords(uri)) == (
        "403: http://[hidden]@mlflow:5000/path?x=1 said Basic [hidden], [hidden] and Bearer [hidden]"
    )
    assert redact("not about it", passwords("sqlite:///mlflow.db")) == "not about it"
    assert without_password(uri) == "http://mlflow:5000/path"
    assert without_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


SMI = """#!/bin/sh
echo "0, 50, 40000, 80000, 350.5"
echo "1, [N/A], 20000, 80000, [N/A]"
"""


def test_a_machine_with_gpus_tells_of_each_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = system.Sampler(1.0, tmp_path, print).sample()
    gpus = {name: value for name, value in found.items() if "gpu" in name}
    assert gpus == {
        "system/gpu_0_utilization_percentage": 50.0,
        "system/gpu_0_memory_usage_megabytes": 41943.0,
        "system/gpu_0_memory_usage_percentage": 50.0,
        "system/gpu_0_power_usage_watts": 350.5,
        "system/gpu_1_memory_usage_megabytes": 20971.5,
        "system/gpu_1_memory_usage_percentage": 25.0,
    }
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert not [name for name in system.Sampler(1.0, tmp_path, print).sample() if "gpu" in name]


def test_what_a_machine_does_not_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "PROC", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = system.Sampler(1.0, tmp_path, print).sample()
    assert set(found) == {"system/disk_usage_percentage", "system/disk_available_megabytes"}
    assert system.Sampler(1.0, tmp_path / "gone", print).sample() == {}


def test_of_each_sort_of_generations_some_are_shown() -> None:
    def row(problem: int, *verdicts: str) -> dict[str, Any]:
        answers = [{"text": "x" * 5000, "verdict": v, "tokens": 1, "truncated": False} for v in verdicts]
        return {"update": 3, "problem": str(problem), "gold": "1", "samples": answers}

    many = [row(i, "correct", "correct") for i in range(5)] + [row(9, "wrong_answer", "no_code")]
    many += [row(10, "wrong", "passed"), row(11, "wrong", "timeout"), row(12)]
    found = list(samples.select(many))
    assert [(one["sort"], one["problem"], one["verdict"]) for one in found] == [
        *(("good", str(i), "correct") for i in range(samples.EACH)),
        ("bad", "9", "wrong_answer"),
        ("disputed", "10", "passed"), ("disputed", "10", "wrong"),
        ("disputed", "11", "timeout"), ("disputed", "11", "wrong"),
    ]  # fmt: skip
    assert found[0]["set"] == "update 3"
    assert all(len(one["text"]) == samples.TEXT for one in found)
    assert found[4]["right"] == "1 of 2"


def test_each_step_reads_its_own_part_of_the_data(tmp_path: Path) -> None:
    names = [
        f"{split}/{d}" for split in ("sft", "rl", "probe", "validation", "evaluation") for d in ("algebra", "code")
    ]
    files = {f"{name}.parquet": {"sha256": name, "size": 1} for name in names} | {"card.json": {"sha256": "c"}}
    data = Artifact(tmp_path, {"files": files})

    def read(kind: str, **settings: Any) -> list[str]:
        return [one.name for one in of_step(kind, settings, {}, data)]

    stage = {"train_data": None, "validation_data": None}
    assert read("specialist", domains=["code"]) == ["sft/code"]
    assert read("probe", domain="code") == ["probe/code", "validation/code"]
    assert read("signal", domains=["algebra"], stage=stage) == ["rl/algebra"]
    assert read("signal", domains=["algebra"], stage=stage, validation={}) == ["rl/algebra", "validation/algebra"]
    assert read("evaluation", sets=None) == ["evaluation/algebra", "evaluation/code"]
    assert read("evaluation", sets=["code"]) == ["evaluation/code"]
    assert read("import", role="probe") == read("fusion", domains=["code"]) == []
    assert read("fusion", domains=["code"], probing={}) == ["probe/code", "validation/code"]
    assert read("solutions", domains=["algebra"]) == ["rl/algebra"]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}")
    [own] = of_step("signal", {"stage": stage | {"train_data": "mine.jsonl"}}, {"mine.jsonl": str(mine)}, None)
    mine.unlink()
    assert of_step("signal", {"stage": stage | {"train_data": "mine.jsonl"}}, {"mine.jsonl": str(mine)}, None) == []
    assert (own.name, own.context, own.files) == ("mine.jsonl", "training", (str(mine),))
    assert [one.name for one in whole(data)] == [
        "sft", "rl", "probe", "validation", "evaluation/algebra", "evaluation/code"
    ]  # fmt: skip


def test_a_few_problems_are_no_proof_that_a_candidate_is_better() -> None:
    def rows(problems: int, correct: int) -> list[dict[str, Any]]:
        return [{"set": "s", "id": str(i), "correct": correct, "samples": 8} for i in range(problems)]

    promoted, why = better(rows(4, 2), rows(4, 6), "version 1", "s")
    assert not promoted
    assert "+50.0 points [+50.0, +50.0] on s, 4 problems, paired, p = 0.062, no significant difference" in why
    assert better(rows(8, 2), rows(8, 6), "version 1", "s")[0]
    promoted, why = better(rows(8, 6), rows(8, 2), "version 1", "s")
    assert not promoted and why.endswith("significantly worse.")
