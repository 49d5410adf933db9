"""`vibethinker export`: folders that transformers alone loads, what it refuses, and that it is whole or not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vibethinker.artifacts import Store, write_json
from vibethinker.errors import ConfigurationError
from vibethinker.exporting import card, checking
from vibethinker.exporting.finding import find
from vibethinker.exporting.placing import check_place, placed
from vibethinker.models import load_model, load_tokenizer, save_model

ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForCausalLM, AutoTokenizer))
asked = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1]:]
print(json.dumps([ids.tolist(), [m for m in sys.modules if m.startswith("vibethinker")]]))
"""


def answers_alone(folder: Path, question: str) -> list[int]:
    """The greedy answer of a folder's model in a process that has transformers and none of this project."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), question], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    ids, ours = json.loads(done.stdout)
    assert ours == []
    return ids


@pytest.mark.slow
def test_a_folder_loads_in_a_fresh_process_with_only_transformers(shaped, here, tmp_path):
    source, output = shaped("qwen2"), tmp_path / "out"
    code, _, err = here(source, "--format", "hf", "--output", output, "--shard-size", "60KB", "--licence", "apache-2.0")
    assert code == 0, err
    assert len(list(output.glob("model-*-of-*.safetensors"))) > 1
    assert "license: apache-2.0" in (output / "README.md").read_text()
    wanted = checking.answers(load_model(source), load_tokenizer(source))
    assert [answers_alone(output, q) for q in checking.QUESTIONS[:1]] == wanted[:1]


@pytest.mark.slow
def test_a_file_lies_where_it_is_asked_for_with_its_card(shaped, here, tmp_path):
    code, _, err = here(shaped("qwen3"), "--format", "gguf", "--output", tmp_path / "new" / "small.gguf")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["small.gguf", "small.md"]


def test_wrong_arguments_are_refused_in_a_sentence(shaped, here, tmp_path):
    def refused(*arguments: object) -> str:
        code, _, err = here(*arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        return err

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    assert "exists already" in refused(shaped("qwen3"), "--format", "hf", "--output", taken)
    assert (taken / "file").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    for path in shaped("qwen3").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["GemmaForCausalLM"]}))
    said = refused(other, "--format", "gguf", "--output", tmp_path / "out")
    assert "GemmaForCausalLM" in said and "Qwen3ForCausalLM" in said and not (tmp_path / "out").exists()


def test_what_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with placed(tmp_path / "out") as staging:
            (staging / "half").write_text("of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_somebody_takes_meanwhile_stays_theirs(tmp_path):
    with pytest.raises(ConfigurationError, match="exists already"), placed(tmp_path / "out") as staging:
        (staging / "mine").write_text("x")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")


@pytest.fixture
def workspace(tmp_path, tiny_model_folder, tiny_tokenizer) -> Path:
    """With a base and a specialist of two adapters, of which probing chose the second."""
    from peft import get_peft_model

    from vibethinker.models.trainable import lora_config
    from vibethinker.settings import Lora

    store, record = Store(tmp_path / "ws"), {"metrics": {}, "settings": {}, "run_id": "r", "seconds": 1.0}
    staging = store.staging("base", "b" * 64)
    save_model(load_model(tiny_model_folder), tiny_tokenizer, staging)
    base = store.publish(staging, "base", "b" * 64, inputs={}, record={**record, "kind": "base"})
    staging = store.staging("specialist-x", "5" * 64)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(base.folder), lora_config(Lora()))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        save_model(model, tiny_tokenizer, staging / "checkpoints" / f"step-{seed}")
    inputs = {"base": base.digest}
    store.publish(staging, "specialist-x", "5" * 64, inputs=inputs, record={**record, "kind": "specialist"})
    staging = store.staging("probe-x", "9" * 64)
    write_json(staging / "probe.json", {"selected": "step-2"})
    store.publish(staging, "probe-x", "9" * 64, inputs={}, record={**record, "kind": "probe"})
    steps = {"base": "b", "specialist-x": "5", "probe-x": "9", "fusion": "f"}
    write_json(
        store.workspace / "runs" / "r" / "summary.json",
        {"schema": 1, "run_id": "r", "steps": [{"id": i, "fingerprint": f * 64} for i, f in steps.items()]},
    )
    write_json(store.workspace / "runs" / "r" / "state.json", {"number": 1, "started": 1.0, "resume": ""})
    return store.workspace


def test_a_step_names_the_checkpoint_that_probing_chose_and_its_base(workspace):
    found = find("specialist-x", workspace)
    assert found.folder.name == "step-2" and found.id == "specialist-x"
    assert found.base == workspace / "artifacts" / "base" / ("b" * 64)
    assert find(str(found.folder), Path("elsewhere")).base == found.base.resolve()


def test_a_model_goes_by_its_step_whichever_training_it_is_of(tmp_path, tiny_model_folder):
    """A specialist with a second stage, two of one training on all domains, and a distilled model."""
    store, record = Store(tmp_path / "ws"), {"metrics": {}, "settings": {}, "run_id": "r", "seconds": 1.0}
    reads = {"probe-x": ["base", "hard-x"], "probe-y": ["specialist-mixture"], "probe-z": ["specialist-mixture"]}
    steps = []
    for step in ("specialist-x", "hard-x", "specialist-mixture", "distilled", *reads):
        staging = store.staging(step, "f" * 64)
        if step in reads:
            write_json(staging / "probe.json", {"selected": "step-1" if step == "probe-y" else "step-2"})
        for number in (1, 2) if step not in reads and step != "distilled" else ():
            shutil.copytree(tiny_model_folder, staging / "checkpoints" / f"step-{number}")
        if step == "distilled":
            shutil.copytree(tiny_model_folder, staging, dirs_exist_ok=True)
        store.publish(staging, step, "f" * 64, inputs={}, record=record)
        steps.append({"id": step, "fingerprint": "f" * 64, "depends_on": reads.get(step, [])})
    run = store.workspace / "runs" / "r"
    models = [
        {"id": "specialist-y", "path": str(store.folder("specialist-mixture", "f" * 64) / "checkpoints" / "step-1"),
         "scores": {"y": {"avg@4": {"value": 0.75, "low": 0.5, "high": 1.0}}}},
        {"id": "specialist-z", "path": str(store.folder("specialist-mixture", "f" * 64) / "checkpoints" / "step-2"),
         "scores": {"z": {"avg@4": {"value": 0.25, "low": 0.0, "high": 0.5}}}},
    ]  # fmt: skip
    write_json(run / "summary.json", {"schema": 1, "run_id": "r", "steps": steps, "models": models, "warnings": []})
    write_json(run / "state.json", {"number": 1, "started": 1.0, "resume": ""})

    def place(name: str) -> tuple[str, ...]:
        return find(name, store.workspace).folder.relative_to(store.workspace / "artifacts").parts

    assert place("specialist-x") == ("hard-x", "f" * 64, "checkpoints", "step-2")
    assert place("specialist-y") == ("specialist-mixture", "f" * 64, "checkpoints", "step-1")
    assert place("specialist-z") == ("specialist-mixture", "f" * 64, "checkpoints", "step-2")
    assert place("distilled") == ("distilled", "f" * 64)
    text = card.render(find("specialist-y", store.workspace))
    assert "| y | avg@4 | 75.0 % |" in text and "25.0 %" not in text


@pytest.mark.slow
def test_adapters_are_merged_into_their_unquantised_base(workspace, tmp_path):
    from vibethinker.exporting.writing import write

    found = find("specialist-x", workspace)
    write(found, tmp_path / "out", gguf=None, shard_size="5GB", licence=None)
    merged, wanted = load_model(tmp_path / "out"), load_model(found.folder, base=found.base)
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert not torch.equal(
        merged.model.layers[0].mlp.up_proj.weight, load_model(found.base).model.layers[0].mlp.up_proj.weight
    )


def test_what_is_no_model_is_refused_by_name(workspace):
    for name, said in (
        ("fusion", "isn't published"),
        ("nonsense", "it has base, specialist-x, fusion"),
        (str(workspace / "artifacts" / "specialist-x" / ("5" * 64)), "checkpoints/step-1, checkpoints/step-2"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            find(name, workspace)
    (workspace / "artifacts" / "base" / ("b" * 64) / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="was damaged"):
        find("base", workspace)
