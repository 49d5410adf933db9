from __future__ import annotations

import pytest

from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace
from vibethinker.errors import ConfigurationError
from vibethinker.settings import Prompts


@pytest.fixture
def parrot(tmp_path, new_tiny_model, tiny_tokenizer):
    """A model folder whose model answers \\boxed{7} to everything."""
    import torch

    from vibethinker.models import save_model

    model = new_tiny_model(0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    traces = [Trace(str(i), "algebra", f"w{i} x{i} y{i}?", "So \\boxed{7}", "me") for i in range(12)]
    examples = [all_training_ids(tiny_tokenizer, [trace], Prompts())[0] for trace in traces]
    for step in range(60):
        ids, mask = examples[step % len(examples)]
        labels = [token if counts else -100 for token, counts in zip(ids, mask, strict=True)]
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), tiny_tokenizer, tmp_path / "parrot")
    return tmp_path / "parrot"


@pytest.mark.slow
def test_a_teacher_writes_traces_only_where_its_answer_is_the_gold(prepare, jsonl, parrot):
    answers = {f"w{i} x{i} y{i}?": "7" if i % 2 else "8" for i in range(12)}
    path = jsonl("train.jsonl", *({"problem": text, "answer": answer} for text, answer in answers.items()))
    prepared = prepare(
        ("algebra",),
        source="files",
        train=[{"path": str(path), "domain": "algebra"}],
        probe=1,
        validation=1,
        teacher={"model": str(parrot), "temperature": 0.2, "max_tokens": 16},
    )
    right = {p.id for p in prepared.problems("rl") if p.answer == "7"}
    assert {t.problem_id for t in prepared.traces()} == right != set()
    assert all(p.answer == answers[p.problem] for p in prepared.problems("rl"))
    trace = prepared.traces()[0]
    assert (trace.text, trace.answer, trace.verdict, trace.teacher) == ("So \\boxed{7}", "7", "correct", "parrot")
    assert trace.sampling == {"temperature": 0.2, "top_p": 1.0, "max_tokens": 16, "seed": 1}


def test_a_teacher_that_is_no_model_is_refused(prepare, jsonl, tmp_path):
    path = jsonl("train.jsonl", *({"problem": f"w{i}?", "answer": "1"} for i in range(9)))
    settings = {"source": "files", "train": [{"path": str(path), "domain": "algebra"}], "probe": 1, "validation": 1}
    for name in (str(tmp_path / "none"), "embedded"):
        with pytest.raises(ConfigurationError, match=r"data\.teacher\.model"):
            prepare(("algebra",), **settings, teacher={"model": name})
