"""Equality of answers: the corpus judged by hand, the exact path against the full one, mutations, real golds."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from vibethinker.verification import Item, Verifier
from vibethinker.verification.answers import decide
from vibethinker.verification.equivalence import judge

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text().splitlines()]
GOLDS = ["gsm8k_test.jsonl", "math500_test.jsonl", "hmmt25.parquet", "aime.parquet"]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2) as shared:
        yield shared


def boxed(answer: str) -> str:
    return f"So it is $\\boxed{{{answer}}}$."


def verdicts(verifier: Verifier, pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [v.verdict for v in verifier.grade([Item("math", boxed(answer), gold) for gold, answer in pairs])]


def golds(folder: Path, name: str) -> list[str]:
    if name.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet")
        return [str(row["reward_model"]["ground_truth"]) for row in parquet.read_table(folder / name).to_pylist()]
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [answer for row in rows if (answer := row["answer"].rpartition("####")[2].strip())]


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted({row["form"] for row in CORPUS}))
def test_every_pair_judged_by_hand_gets_its_verdict(verifier, form):
    rows = [row for row in CORPUS if row["form"] == form]
    assert len(rows) >= 12
    items = [
        Item("math", row["response"] if "response" in row else boxed(row["answer"]), row["gold"], row.get("prompt", ""))
        for row in rows
    ]
    found = [verdict.verdict for verdict in verifier.grade(items)]
    assert [(row, verdict) for row, verdict in zip(rows, found, strict=True) if verdict != row["verdict"]] == []


@pytest.mark.slow
def test_pairs_that_a_reviewer_found_judged_wrongly_are_so_no_more(verifier):
    rows = [json.loads(line) for line in (Path(__file__).parent / "found.jsonl").read_text().splitlines()]
    found = verdicts(verifier, [(row["gold"], row["answer"]) for row in rows])
    assert [(row, verdict) for row, verdict in zip(rows, found, strict=True) if verdict != row["verdict"]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.5", r"\cot 0"),
        ("2.5", "(-1)!"),
        ("y=2x+1", "x=(1,2)"),
        ("y=2x+1", r"x \in \mathbb{R}"),
        ("0.5", r"\frac{0}{0}"),
    ],
)
def test_an_answer_that_cannot_be_computed_is_wrong_and_not_left_out(verifier, gold, answer):
    assert verdicts(verifier, [(gold, answer)]) == ["wrong"]


def nested(depth: int) -> str:
    text = "1"
    for _ in range(depth):
        text = f"x<({text} or x>1)"
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    "box",
    [
        r"\text{" + " " * 500_000 + "x}",
        "[" + "answer" * 150_000,
        "1}" + r"\boxed{1}" * 100_000 + r"\boxed{1",
        r"\$" * 990,
        ")" * 400 + r"\cup " + "(" * 400 + "1" + ")" * 400,
        ",".join([nested(12)] * 14),
        "{" * 900 + "}" * 900,
    ],
    ids=range(7),
)
def test_no_answer_keeps_its_caller_busy(verifier, box):
    # Where the time grows with the square of the length, or twofold with each level, this doesn't end.
    assert verdicts(verifier, [("7", box)])[0] in ("wrong", "no_answer")


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("18", " 18. ", True),
        ("18", r"\$18", True),
        ("1234567", r"1{,}234{,}567", True),
        ("1/2", ".5", True),
        (r"\frac12", "1/2", True),
        ("2x+3x", "5x", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\text{Evelyn}", "evelyn", True),
        ("50\\%", "0.5", True),
        ("1,2", "2,1", True),
        ("18", "19", False),
        ("1/3", "0.333", False),
        ("6x+2", "6x+3", False),
        ("x", "0", False),
        ("[0,1)", "[0,1]", False),
        (r"\text{east}", "seat", False),
        ("5", "5" * 2001, False),
        ("5", "{" * 50 + "5" + "}" * 50, False),
        ("5", "1,2,3,4,5", False),
    ],
)
def test_plain_answers_are_decided_without_a_worker(gold, answer, equal):
    assert decide(gold, answer) is equal


@pytest.mark.parametrize(
    ("gold", "answer"), [("ab", "ba"), ("6t", "t*6"), ("3", r"\sqrt{9}"), ("1/2", "\\sin 30^\\circ"), ("y=2x", "2y=4x")]
)
def test_what_must_be_computed_is_left_to_a_worker(gold, answer):
    assert decide(gold, answer) is None


def test_a_gold_answer_that_cannot_be_read_is_an_error(verifier):
    assert verdicts(verifier, [(r"\frac{1}{", r"\sqrt{2}"), (r"x \boxtimes y", r"\sqrt{2}")]) == ["error", "error"]


def mutations(gold: str, chance: random.Random) -> list[str]:
    """Golds with a digit changed, a sign turned or set in front, an interval's bracket turned."""
    found = []
    if digits := list(re.finditer(r"\d", gold)):
        digit = chance.choice(digits)
        other = str((int(digit[0]) + chance.randrange(1, 9)) % 10)
        found.append(gold[: digit.start()] + other + gold[digit.end() :])
    if signs := list(re.finditer(r"(?<=[^\s{(\[,=])\s*[+-]\s*(?=\S)", gold)):
        sign = chance.choice(signs)
        found.append(gold[: sign.start()] + sign[0].translate(str.maketrans("+-", "-+")) + gold[sign.end() :])
    if re.match(r"[1-9\\]", gold) and not gold.startswith((r"\text", r"\begin", r"\{", r"\pm")):
        found.append(f"-{gold}")
    if interval := re.fullmatch(r"(\\left)?([\[(])(.*,.*)(\\right)?([\])])", gold):
        left, opening, ends, right, closing = interval.groups(default="")
        found.append(f"{left}{'(' if opening == '[' else '['}{ends}{right}{closing}")
    return found


def mutated(answers: Sequence[str], seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    # A phantom isn't seen, and of "0.56 = 56\%" and "2/3 \approx 0.67" one side only is the answer.
    clear = [gold for gold in dict.fromkeys(answers) if not re.search(r"=.*%|\\approx|\\phantom", gold)]
    return [(gold, changed) for gold in clear for changed in mutations(gold, chance)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GOLDS, "math_train.jsonl"])
def test_changing_a_digit_a_sign_or_a_bracket_makes_an_answer_wrong(verifier, shared_data, name):
    pairs = mutated(golds(shared_data, name), seed=1)
    assert len(pairs) >= 30
    accepted = [p for p, verdict in zip(pairs, verdicts(verifier, pairs), strict=True) if verdict != "wrong"]
    assert accepted == []


def test_changing_an_answer_of_the_corpus_makes_it_wrong(verifier):
    plain = [r["gold"] for r in CORPUS if r["form"] in ("integer", "fraction", "interval", "tuple", "expression")]
    pairs = [(gold, changed) for gold, changed in mutated(plain, seed=2) if "^2" not in gold]
    assert len(pairs) >= 100
    assert {p for p, v in zip(pairs, verdicts(verifier, pairs), strict=True) if v != "wrong"} == set()


@pytest.mark.parametrize("name", GOLDS)
def test_every_gold_answer_equals_itself_and_no_other_but_its_equals(verifier, shared_data, name):
    answers = golds(shared_data, name)
    assert set(verdicts(verifier, [(answer, answer) for answer in answers])) == {"correct"}
    shuffled = random.Random(0).sample(answers, len(answers))
    found = verdicts(verifier, zip(answers, shuffled, strict=True))
    assert set(found) <= {"correct", "wrong"}
    plain = {answer: re.sub(r"[\s,]|\\!", "", answer) for answer in answers}
    for gold, answer, verdict in zip(answers, shuffled, found, strict=True):
        assert (verdict == "correct") == (plain[gold] == plain[answer]), (gold, answer)


def number(chance: random.Random) -> str:
    size = chance.choice([5, 20, 1000, 10**6, 10**12])
    whole, top, bottom = chance.randint(-size, size), chance.randint(-30, 30), chance.randint(1, 20)
    text = chance.choice(
        [
            str(whole),
            f"{whole:,}",
            f"{abs(whole):,}".replace(",", r"\,"),
            f"{whole / chance.choice([1, 2, 3, 4, 10, 1000]):.{chance.randint(1, 8)}f}",
            f"{top}/{bottom}",
            f"\\frac{{{top}}}{{{bottom}}}",
            f"-\\dfrac{{{abs(top)}}}{{{bottom}}}",
            f"{abs(top)}\\frac{{{chance.randint(1, bottom)}}}{{{bottom + 1}}}",
            f"{chance.randint(1, 9)}.{chance.randint(0, 99)} \\times 10^{{{chance.randint(-3, 6)}}}",
            f"{whole}\\%",
        ]
    )
    return chance.choice(["{}"] * 8 + ["${}$", "{}.", "{} \\text{{ cm}}"]).format(text)


def polynomial(chance: random.Random) -> str:
    letter = chance.choice("xyz")
    terms = []
    for _ in range(chance.randint(1, 4)):
        factor, degree = chance.randint(1, 9), chance.choice([0, 1, 1, 2, 3, 10])
        power = "" if degree == 1 else chance.choice([f"^{degree}", f"^{{{degree}}}"])
        times = chance.choice(["", "", "", "*", "\\cdot "])
        terms.append(chance.choice("+-") + (f"{factor}{times}{letter}{power}" if degree else str(factor)))
    return "".join(terms).removeprefix("+")


def structured(chance: random.Random) -> str:
    items = [number(chance).strip("$.") for _ in range(chance.randint(2, 4))]
    opening, closing = chance.choice([("(", ")"), ("[", "]"), ("[", ")"), (r"\{", r"\}"), ("", "")])
    return opening + ", ".join(items if closing else items[:3]) + closing


def generated_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    pairs = []
    for _ in range(count):
        make = chance.choice([number, number, polynomial, structured])
        gold = make(chance)
        pairs.append(
            (gold, chance.choice([make(chance), gold.replace(" ", ""), f"x = {gold}", *mutations(gold, chance)]))
        )
    return pairs


def disagreements(pairs: Iterable[tuple[str, str]]) -> tuple[int, list[tuple[str, str]]]:
    """How many pairs the exact path decides, and those that the full path, which uses none of it, decides otherwise."""
    decided = [(gold, answer, equal) for gold, answer in pairs if (equal := decide(gold, answer)) is not None]
    wrong = [
        (gold, answer)
        for gold, answer, equal in decided
        if judge(gold, answer, exact=False) != ("correct" if equal else "wrong")
    ]
    return len(decided), wrong


@pytest.mark.slow
def test_the_exact_path_never_disagrees_with_the_full_one_on_generated_answers():
    decided, wrong = disagreements(generated_pairs(seed=7, count=1500))
    assert wrong == []
    assert decided > 1200


@pytest.mark.slow
def test_the_exact_path_never_disagrees_with_the_full_one_on_real_answers(shared_data):
    chance = random.Random(5)
    pairs = [(row["gold"], row["answer"]) for row in CORPUS if "answer" in row and row["form"] != "hacking"]
    for name in GOLDS:
        answers = golds(shared_data, name)
        pairs += [*zip(answers, chance.sample(answers, len(answers)), strict=True), *mutated(answers, seed=3)]
    decided, wrong = disagreements(pairs)
    assert wrong == []
    assert decided > 2000
