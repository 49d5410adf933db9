"""The data step with a teacher: on a server that misbehaves, and on this machine."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from tests.generation.fake_openai import Exchange, FakeOpenAI, answer, chaos
from vibethinker.data.diversity import choose, spread
from vibethinker.data.prepare import run
from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace
from vibethinker.data.settings import Diversity
from vibethinker.data.votes import majority
from vibethinker.errors import ConfigurationError
from vibethinker.settings import Prompts
from vibethinker.verification import Verifier

pytestmark = pytest.mark.slow

KEY = "sk-test-0123456789abcdef"


def row(i: int, **more) -> dict:
    return {"problem": f"Add w{i} to {i} and find x{i}.", "answer": str(i), **more}


def solve(exchange: Exchange) -> None:
    """Right three times of four, with reasoning apart, in words that differ from sample to sample."""
    number, seed = re.search(r"to (\d+)", exchange.prompt)[1], exchange.body["seed"]
    value = int(number) + (seed % 4 == 0)
    words = " ".join(f"s{seed >> shift & 15}t" for shift in range(0, 28, 3))
    exchange.whole = True
    exchange.send(exchange.completion(f"So \\boxed{{{value}}}", reasoning_content=f"Since {words}."))


def teacher(fake: FakeOpenAI, **more) -> dict:
    server = {"url": fake.url, "key_variable": "TEACHER_KEY", "concurrency": 8, "timeout": 2, "backoff": 0.01}
    return {"model": "sage", "engine": "server", "server": server, "samples": 6, **more}


def files(path, **more) -> dict:
    return {"source": "files", "train": [{"path": str(path), "domain": "algebra"}], **more}


def test_a_server_writes_several_different_verified_traces(prepare, jsonl, monkeypatch, tmp_path):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    path = jsonl("train.jsonl", *(row(i) for i in range(30)))
    budget = {"usd": 10, "input_price": 1.0, "output_price": 2.0}
    styles = [{"name": "own"}, {"name": "brief", "system": "Be brief.", "suffix": " Briefly."}]
    with FakeOpenAI(solve) as fake:
        asked = teacher(fake, budget=budget, styles=styles, temperatures=[0.5, 1.0])
        prepared = prepare(("algebra",), **files(path, teacher=asked), prompts=Prompts(math_suffix=" Box it."))
        seen = list(fake.seen)
    train = {p.id: p for p in prepared.problems("rl")}
    traces = prepared.traces()
    assert {p.answer for p in train.values()} <= {str(i) for i in range(30)}, "gold stays"
    assert all(t.answer == train[t.problem_id].answer and t.verdict == "correct" for t in traces)
    assert all(re.fullmatch(r"<think>\nSince .*\.\n</think>\n\nSo \\boxed{\d+}", t.text) for t in traces)
    assert max(Counter(t.problem_id for t in traces).values()) == 3
    assert len({(t.problem_id, t.text) for t in traces}) == len(traces)
    assert {(t.sampling["style"], t.sampling["temperature"]) for t in traces} == {
        (style, temperature) for style in ("own", "brief") for temperature in (0.5, 1.0)
    }
    assert {e.body["messages"][-1]["content"].rpartition(".")[0].split()[-1] for e in seen} >= {"Briefly", "it"}
    assert all(e.headers["Authorization"] == f"Bearer {KEY}" for e in seen)
    about = prepared.card["teacher"]
    assert about["requests"] == about["replies"] == len(seen) == 6 * len(train)
    assert (about["prompt_tokens"], about["completion_tokens"]) == fake.billed
    assert about["usd"] == pytest.approx((fake.billed[0] + 2 * fake.billed[1]) / 1e6, abs=1e-6)
    assert about["correct"] + about["wrong"] == about["replies"] and about["wrong"] > 0
    assert prepared.card["diversity"]["algebra"]["distance"] > 0.3
    held = [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
    assert held == []


def test_a_server_that_fails_in_every_way_loses_and_doubles_no_trace(prepare, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(30)))
    with FakeOpenAI(answered(chaos(3, 0.4))) as fake:
        asked = teacher(fake)
        asked["server"] |= {"timeout": 0.5, "retries": 12}
        rough = prepare(("algebra",), **files(path, teacher=asked))
        whole = Counter((e.prompt, e.body["seed"]) for e in fake.seen if e.whole)
    with FakeOpenAI(answered(answer)) as fake:
        asked = teacher(fake)
        smooth = prepare(("algebra",), **files(path, teacher=asked))
    assert len(whole) == rough.card["teacher"]["replies"] == smooth.card["teacher"]["replies"]
    assert set(whole.values()) == {1}
    assert [t.text for t in rough.traces()] == [t.text for t in smooth.traces()] != []
    assert rough.card["teacher"]["retries"] > 0


def answered(behave):
    """The behaviour with right answers in the place of the fake's own words."""

    def behaves(exchange: Exchange) -> None:
        number = re.search(r"to (\d+)", exchange.prompt)[1]
        first = exchange.completion
        exchange.completion = lambda text=None, **message: first(
            f"Seed {exchange.body['seed']} gives \\boxed{{{number}}}" if text is None else text, **message
        )
        behave(exchange)

    return behaves


def test_nothing_is_asked_twice_by_a_later_run_and_a_budget_stops_or_is_used(data_context, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(30)))
    with FakeOpenAI(solve) as fake:
        stops = data_context(
            ("algebra",), **files(path, teacher=teacher(fake, budget={"tokens": 2500, "then": "stop"}))
        )
        with pytest.raises(
            ConfigurationError, match=r"budget doesn't suffice: .* of 2,500 tokens .*nothing is paid for"
        ):
            run(stops)
        first = len(fake.seen)
        assert 0 < first < 100 and sum(fake.billed) <= 2500
        uses = data_context(("algebra",), **files(path, teacher=teacher(fake, budget={"tokens": 2500, "then": "use"})))
        metrics = run(uses)
        assert len(fake.seen) <= first + 1 and 0 < metrics["traces"] < 60
        assert any("The run goes on with" in warning for warning in uses.emit.warnings)
        enough = data_context(("algebra",), **files(path, teacher=teacher(fake, budget={"tokens": 10**7})))
        run(enough)
        wanted = 6 * json.loads((enough.output / "card.json").read_text())["domains"]["algebra"]["train"]
        assert len(fake.seen) == wanted, "each request was sent once, over three runs"
        run(data_context(("algebra",), **files(path, solutions=2, teacher=teacher(fake))))
        assert len(fake.seen) == wanted


def test_problems_without_gold_are_labelled_by_majority_and_marked(prepare, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(20)), *(row(i, answer=None) for i in range(20, 50)))

    def votes(exchange: Exchange) -> None:
        number = int(re.search(r"to (\d+)", exchange.prompt)[1])
        said = f"{number}.0" if exchange.body["seed"] % 2 else str(number)
        if number % 3 == 0:
            said = str(exchange.body["seed"])  # all disagree
        exchange.send(exchange.completion(f"So \\boxed{{{said}}}, by s{exchange.body['seed']}t."))

    with FakeOpenAI(votes) as fake:
        asked = teacher(fake, votes={"enabled": True, "share": 0.6})
        prepared = prepare(("algebra",), **files(path, teacher=asked))
    labelled = [p for p in prepared.problems("rl") if p.answer_source == "majority"]
    assert {int(float(p.answer)) % 3 for p in labelled} == {1, 2}
    assert all(int(re.search(r"to (\d+)", p.problem)[1]) == float(p.answer) for p in labelled)
    held_out = [p for part in ("probe", "validation") for p in prepared.problems(part)]
    assert {p.answer_source for p in held_out} == {"gold"}
    assert {p.id for p in labelled} & {t.problem_id for t in prepared.traces()}
    counts = prepared.card["domains"]["algebra"]
    assert prepared.card["teacher"]["majority_labels"] == len(labelled) == counts["majority_labels"] > 8
    assert counts["no_majority"] > 3
    assert (
        counts["rows"]
        == 50
        == sum(counts.get(name, 0) for name in ("train", "probe", "validation", "reserved", "no_majority", "no_gold"))
    )


def test_the_teacher_names_domains_where_keywords_do_not(prepare, jsonl):
    path = jsonl("train.jsonl", *(row(i, problem=f"Think of w{i} and say x{i}.") for i in range(60)))

    def names(exchange: Exchange) -> None:
        number = int(re.search(r"w(\d+)", exchange.prompt)[1])
        exchange.send(exchange.completion(["algebra", "<think>geometry?</think>geometry", "art"][number % 3]))

    with FakeOpenAI(names) as fake:
        settings = files(path, teacher=teacher(fake, ask="lacking", samples=1), classifier={"teacher": True})
        settings["train"][0]["domain"] = "auto"
        prepared = prepare(("algebra", "geometry"), **settings, probe=1, validation=1)
    rows = {domain: prepared.card["domains"][domain]["rows"] for domain in ("algebra", "geometry")}
    assert rows == {"algebra": 20, "geometry": 20}
    assert prepared.card["classifier"]["by_teacher"] == 40
    assert prepared.card["sources"][0]["counts"]["unmapped"] == 20


def test_a_secret_is_read_by_the_flow_only(data_context, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(30)))
    with FakeOpenAI(solve) as fake:
        asked = teacher(fake)
        asked["server"]["key_secret"] = "teacher-key"
        context = data_context(("algebra",), **files(path, teacher=asked))
        with pytest.raises(ConfigurationError, match=r"'teacher-key' is a Prefect block.*vibethinker run"):
            run(context)
        assert not fake.seen
        context = data_context(("algebra",), **files(path, teacher=asked))
        context.execution["secrets"] = {"teacher-key": KEY}
        run(context)
        assert {e.headers["Authorization"] for e in fake.seen} == {f"Bearer {KEY}"}


# ---- a model on this machine ----


@pytest.fixture
def parrot(tmp_path, new_tiny_model, tiny_tokenizer):
    r"""A model folder whose model answers \boxed{7} to everything."""
    import torch

    from vibethinker.models import save_model

    model = new_tiny_model(0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    traces = [Trace(str(i), "algebra", row(i)["problem"], "So \\boxed{7}", "me") for i in range(12)]
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
def test_the_student_itself_is_a_teacher_and_only_the_gold_counts(prepare, jsonl, parrot):
    path = jsonl("train.jsonl", *(row(i, answer="7" if i % 2 else "8") for i in range(24)))
    sampling = {"temperatures": [0.2], "samples": 2, "max_tokens": 16}
    settings = files(path, probe=1, validation=1, teacher={"model": str(parrot), **sampling}, tokenizer=str(parrot))
    prepared = prepare(("algebra",), **settings, state="shared", diversity={"embedding": str(parrot)})
    right = {p.id for p in prepared.problems("rl") if p.answer == "7"}
    assert {t.problem_id for t in prepared.traces()} == right != set()
    trace = prepared.traces()[0]
    assert (trace.text, trace.answer, trace.verdict, trace.teacher) == ("So \\boxed{7}", "7", "correct", "parrot")
    assert trace.sampling.keys() == {"temperature", "top_p", "max_tokens", "seed", "style"}
    assert prepared.card["lengths"]["unit"] == "tokens"
    assert prepared.card["teacher"]["replies"] > 0


def test_a_teacher_that_is_no_model_is_refused(prepare, jsonl, tmp_path):
    path = jsonl("train.jsonl", *(row(i) for i in range(20)))
    for name in (str(tmp_path / "none"), "embedded"):
        with pytest.raises(ConfigurationError, match=r"data\.teacher\.model"):
            prepare(("algebra",), **files(path, probe=1, validation=1, teacher={"model": name}))


# ---- choice and votes ----


def test_the_most_different_texts_are_chosen_and_equal_ones_never():
    texts = ["a b c d e f", "a b c d e f", "a b c d e g", "u v w x y z"]
    assert choose(texts, 4, Diversity(distance=0)) == [0, 3, 2]
    assert choose(texts, 2, Diversity(distance=0)) == [0, 3]
    assert choose(texts, 4, Diversity(distance=0.9)) == [0, 3]
    assert choose([], 3, Diversity()) == []
    assert spread(texts[:2], 3) == 0 and spread(texts[2:], 3) == 1 and spread(texts[:1], 3) is None


def test_a_label_needs_a_majority_of_equivalent_answers():
    def boxed(*answers) -> list[str]:
        return [f"So \\boxed{{{a}}}" if a else "I don't know." for a in answers]

    samples = [
        boxed("1/2", "0.5", "\\frac{1}{2}", "3"),
        boxed("1", "2", "1", "2"),
        boxed("4", None, None, None),
        boxed(None, None, None, None),
        boxed("5", "5", "5", None),
    ]
    with Verifier() as verifier:
        assert majority(samples, [""] * 5, 0.5, verifier)[1:] == [None, None, None, "5"]
        assert majority(samples, [""] * 5, 0.5, verifier)[0] in ("1/2", "0.5", "\\frac{1}{2}")
        assert majority(samples[:1], [""], 0.9, verifier) == [None]
