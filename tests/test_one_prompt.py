"""SFT, probing, RL and evaluation hand the model the same tokens for the same problem: what arrives at its forward
pass is compared, in the steps as they are run."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tests.chat_templates import QWEN3, R1, with_template
from vibethinker import probing
from vibethinker.data.schema import Problem, Trace, write_records
from vibethinker.evaluation import step as evaluation
from vibethinker.models import save_model
from vibethinker.settings import Prompts
from vibethinker.training import sft, signal

pytestmark = pytest.mark.slow

MATH = Problem("m", "algebra", "2+3?", "test", "MIT", answer="5")
TESTS = {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 2}]}
CODE = Problem("c", "code", "f(x) is?", "test", "MIT", tests=TESTS)
PROBLEMS = (MATH, CODE)
WORDS = {"system": "Be brief.", "math_suffix": " Box it.", "code_suffix": " Fence it."}
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# Chat template (None: the tiny model's own), prompt settings, the text that the model gets with the problem in it.
FORMATS = {
    "plain": (None, {}, "<|user|>{}<|assistant|>"),
    "plain, opened, in words": (
        None, {**WORDS, "open_think": True}, "<|system|>Be brief.<|user|>{}<|assistant|><think>\n"
    ),
    "Qwen3 in words": (QWEN3, WORDS, "<|im_start|>system\nBe brief.<|im_end|>\n" + TURN),
    "Qwen3 thinking": (QWEN3, {"thinking": True}, TURN),
    "Qwen3 not thinking": (QWEN3, {"thinking": False}, TURN + "<think>\n\n</think>\n\n"),
    "R1 in words": (R1, WORDS, "Be brief.<｜User｜>{}<｜Assistant｜><think>\n"),
}  # fmt: skip
SAMPLING = {"samples": 2, "max_tokens": 2}


@dataclass(frozen=True)
class Row:
    """A sequence as the model got it, without padding."""

    ids: tuple[int, ...]
    labels: tuple[int, ...] | None  # of supervised training
    generating: bool


@pytest.fixture
def received(monkeypatch) -> list[Row]:
    """The sequences of every forward pass, but for the steps of decoding."""
    rows: list[Row] = []
    forward = Qwen3ForCausalLM.forward
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def spy(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        cache, ids = given.get("past_key_values"), given["input_ids"]
        if cache is None or cache.get_seq_length() == 0:
            mask = given.get("attention_mask")
            for i, row in enumerate(ids):
                kept = slice(None) if mask is None else mask[i].bool()
                rows.append(Row(tuple(row[kept].tolist()), None, cache is not None))
        return forward(*args, **kwargs)

    cross_entropy = torch.nn.functional.cross_entropy

    def loss(logits, targets, **options):
        """The loss of the last pass says which of its tokens count; nothing predicts the first one."""
        count = sum(row.labels is None for row in rows)
        for i, counted in enumerate(targets.view(count, -1).tolist(), start=len(rows) - count):
            rows[i] = replace(rows[i], labels=(-100, *counted[: len(rows[i].ids) - 1]))
        return cross_entropy(logits, targets, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", spy)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", loss)
    return rows


@pytest.fixture
def new_inputs(tmp_path, new_tiny_model, tiny_tokenizer):
    """A function chat template, text of the traces → the inputs of all four steps, and the tokenizer."""

    def make(template, text):
        tokenizer = with_template(tiny_tokenizer, template)
        base, specialist, data = tmp_path / "base", tmp_path / "specialist", tmp_path / "data"
        for folder in (base, specialist / "checkpoints" / "step-000001"):
            save_model(new_tiny_model(0, positions=256), tokenizer, folder)
        for part in ("sft", "rl", "probe", "validation", "evaluation"):
            (data / part).mkdir(parents=True)
            for problem in PROBLEMS:
                file = data / part / f"{problem.domain}.parquet"
                if part == "sft":
                    trace = Trace(problem.id, problem.domain, problem.problem, text, "test")
                    write_records(file, Trace, [trace])
                else:
                    write_records(file, Problem, [problem])
        return {"base": base, "specialist": specialist, "data": data, "model": base}, tokenizer

    return make


@pytest.mark.parametrize("name", FORMATS)
def test_all_four_phases_hand_the_model_the_same_tokens(received, new_inputs, new_step, name):
    template, prompts, text = FORMATS[name]
    trace = "\\boxed{5}" if text.endswith("</think>\n\n") else "<think>\n2+3=5\n</think>\n\n\\boxed{5}"
    inputs, tokenizer = new_inputs(template, trace)
    words = Prompts(**prompts)
    math, code = (
        tuple(tokenizer(text.format(asked), add_special_tokens=False)["input_ids"])
        for asked in (MATH.problem + words.math_suffix, CODE.problem + words.code_suffix)
    )
    common = {"seed": 1, "deterministic": True, "prompts": prompts, "verification": {}, "base_model": {}}

    def given(run, settings, **execution) -> list[Row]:
        """What the model gets while a step runs."""
        received.clear()
        run(new_step(common | settings, inputs, **execution))
        return list(received)

    settings = {"steps": 1, "batch_size": 2, "checkpoints": 1, "max_length": 256}
    learned = trace.removeprefix("<think>\n") if text.endswith("<think>\n") else trace
    examples = given(sft.run, {"domains": ["algebra", "code"], "sft": settings})
    assert {row.ids[: row.labels.count(-100)] for row in examples} == {math, code}
    for row in examples:
        counted = row.labels[row.labels.count(-100) :]
        assert row.ids[-len(counted) :] == counted and tokenizer.decode(counted) == learned + tokenizer.eos_token

    for domain, prompt in (("algebra", math), ("code", code)):
        rows = given(probing.run, {"domain": domain, "probing": {**SAMPLING, "k": 1, "report_k": []}})
        assert {row.ids for row in rows} == {prompt}

        reward = "code" if domain == "code" else "math"
        rows = given(
            signal.run,
            {
                "stage": {"name": "one", "context": 202, "steps": 1, "reward": reward},
                "objective": {"group_size": 2, "batch_size": 2, "max_prompt_tokens": 200},
                "domains": [domain],
            },
            sandbox={"tier": "rlimits", "allow_unsafe": True},
        )
        assert {row.ids for row in rows if row.generating} == {prompt}
        trained = [row.ids for row in rows if not row.generating]
        # Two rollouts, and the canary's looks by engine and trainer at one of them.
        assert len(trained) == 4 and all(ids[: len(prompt)] == prompt and len(ids) > len(prompt) for ids in trained)

    rows = given(evaluation.run, {"sets": None, "evaluation": {**SAMPLING, "k": [1]}})
    assert {row.ids for row in rows} == {math, code}
