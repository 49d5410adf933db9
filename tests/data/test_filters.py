"""Rows that are broken, too long, repetitive or in another language, each with the reason that it is left out for."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibethinker.data.filters import ProblemFilter, repetition, why_broken
from vibethinker.data.settings import Filters
from vibethinker.errors import ConfigurationError

# Four each in German, French, Spanish, Portuguese, Italian, Polish, Russian, Chinese, Japanese, Korean.
FOREIGN = [
    r"Bestimme alle reellen Zahlen $x$ mit $x^2 - 5x + 6 = 0$ und gib ihre Summe an.",
    r"Ein rechtwinkliges Dreieck $ABC$ hat die Katheten $a = 3$ und $b = 4$. Wie lang ist die Hypotenuse $c$?",
    r"Berechne das Integral \[\int_0^1 x^2 \, dx\] und runde auf zwei Stellen.",
    "Anna kauft 12 Äpfel für 3 Euro. In welchem Verhältnis steht der Preis zu der Anzahl, und was kosten 20 Äpfel?",
    r"Soit $f(x) = \frac{1}{x}$. Déterminer la dérivée de $f$ au point $x = 2$.",
    r"Un sac contient 5 boules rouges et 3 boules bleues. Quelle est la probabilité de tirer une boule rouge ?",
    r"Résoudre dans $\mathbb{R}$ l'équation $\sqrt{x+1} = x - 1$.",
    r"Montrer que pour tout entier $n \geq 1$, on a $\sum_{k=1}^n k = \frac{n(n+1)}{2}$.",
    r"Determine el área del triángulo cuyos vértices son $(0,0)$, $(4,0)$ y $(0,3)$.",
    r"¿Cuántos números enteros positivos menores que $100$ son divisibles por $7$?",
    "María tiene 24 caramelos y reparte la tercera parte entre sus amigos. ¿Cuántos caramelos le quedan?",
    r"Calcule el límite $\lim_{x \to 0} \frac{\sin x}{x}$ sin usar la regla de L'Hôpital.",
    r"Determine as raízes do polinômio $2x^2 - 8x + 3$.",
    "Em uma fazenda há galinhas e vacas, num total de 30 cabeças e 84 pés. Quantas vacas há na fazenda?",
    r"Seja $ABC$ um triângulo retângulo em $A$ com $AB = 6$ e $AC = 8$. Calcule a altura relativa à hipotenusa.",
    r"De quantas maneiras podemos escolher $3$ pessoas de um grupo de $10$?",
    r"Calcolare il valore dell'espressione $3^2 + 4 \cdot 5$.",
    r"Un treno percorre $120$ km in due ore. Qual è la sua velocità media?",
    r"Trovare tutti i numeri primi $p$ tali che $p^2 + 2$ sia primo.",
    r"Si consideri la funzione $f(x) = x^3 - 3x$. Determinare i punti di massimo e di minimo relativo.",
    r"Ile to jest $3$ do potęgi $4$, jeżeli $3$ do potęgi $3$ to $27$?",
    r"Rozwiąż równanie $\log_2 (x + 3) = 4$.",
    "Ile jest liczb trzycyfrowych podzielnych przez 11?",
    r"Rzucamy dwa razy kostką do gry. Jakie jest prawdopodobieństwo, że suma oczek jest równa $8$?",
    r"Найдите все действительные решения уравнения $x^4 - 13x^2 + 36 = 0$.",
    r"В треугольнике $ABC$ угол $C$ равен $90^\circ$, $AC = 5$. Найдите $AB$.",
    "У Пети было 15 яблок, он отдал Маше треть. Сколько яблок осталось у Пети?",
    r"Вычислите $\int_0^{\pi} \sin x \, dx$.",
    r"求 $\int_0^1 x^2 dx$ 的值。",
    "小明有五个苹果，他给了小红两个，还剩几个？",
    r"已知函数 $f(x) = \ln x - ax$，若 $f(x)$ 有两个零点，求实数 $a$ 的取值范围。",
    r"在 $\triangle ABC$ 中，$AB = 3$，$AC = 4$，$\angle A = 60^\circ$，则 $BC$ 的长度为多少？",
    r"$x$ についての方程式 $x^2 - 6x + k = 0$ が重解をもつとき、$k$ の値を求めよ。",
    "太郎君はりんごを12個持っています。花子さんに3個あげると、残りは何個ですか。",
    r"関数 $y = \sin x$ のグラフと $x$ 軸で囲まれた部分の面積を求めなさい。",
    r"さいころを2回投げるとき、出た目の和が7になる確率を求めよ。",
    r"이차방정식 $x^2 - 4x + 1 = 0$의 두 근의 합을 구하시오.",
    "철수는 사과를 10개 가지고 있습니다. 영희에게 4개를 주면 몇 개가 남습니까?",
    r"함수 $f(x) = x^3 - 3x$의 극댓값을 구하시오.",
    r"주머니에 빨간 공 3개와 파란 공 2개가 들어 있다. 공 하나를 꺼낼 때 빨간 공일 확률은?",
]
FOREIGN_LANGUAGES = ("de", "fr", "es", "pt", "it", "pl", "ru", "zh", "ja", "ko")

# What English-only filters are tempted by: names, few function words, formulas with words in them, other kin.
ENGLISH = [
    r"Expand $(x+2)(x-3)$.",
    r"Factor completely: $x^4 - 16$.",
    r"Differentiate $\sin x$ twice.",
    r"Rationalise the denominator of \[\frac{1}{\sqrt{2}}\].",
    r"\[\text{Evaluate } \int_0^1 x\,dx.\]",
    r"Prove inequality $a^2+b^2 \ge 2ab$.",
    "Gretchen, Mitzi and Beth bowled 120, 113 and 85. Average score?",
    "Señor Núñez paid $5 for jalapeños and $3.50 for piñatas. How much did he pay?",
    "An engineer invested $10,000 for 3 years. Interest?",
    "`für alle die das der` is a string: count its words.",
]


class Row(NamedTuple):
    file: str
    problem: str
    gold: str | None


@pytest.fixture(scope="module")
def shared(shared_data) -> list[Row]:
    def jsonl(file: str, *columns: str) -> list[list[str]]:
        rows = [json.loads(line) for line in (shared_data / f"{file}.jsonl").read_text().splitlines()]
        return [[str(row[column]) for column in columns] for row in rows]

    rows = [Row(f, *row) for f in ("math_train", "math500_test") for row in jsonl(f, "problem", "answer")]
    for file in ("gsm8k_train", "gsm8k_test"):
        rows += [Row(file, text, answer.rpartition("#### ")[2]) for text, answer in jsonl(file, "question", "answer")]
    for body, text, answer in jsonl("svamp_test", "Body", "Question", "Answer"):
        rows.append(Row("svamp_test", f"{body} {text}", answer.removesuffix(".0")))
    rows += [Row("mbpp", text, None) for (text,) in jsonl("mbpp", "text")]
    parquet = pytest.importorskip("pyarrow.parquet")
    for file in ("aime", "aime25", "hmmt25"):
        for row in parquet.read_table(shared_data / f"{file}.parquet").to_pylist():
            rows.append(Row(file, row["prompt"][0]["content"], str(row["reward_model"]["ground_truth"])))
    return rows


def reason(problem: str, answer: str | None = None, **settings: object) -> str | None:
    return ProblemFilter(Filters(**settings)).reason(problem, answer)


# --- broken texts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("What is\x00 2?", "control"),
        ("$\x0crac{1}{2}$", "control"),  # \frac, its backslash read as an escape
        ("$\x08egin{cases}$", "control"),
        ("a\x85b", "control"),
        ("a \ud835 b", "not decoded"),
        ("Andr\ufffd has 2 apples.", "not decoded"),
        (r"Find $\frac{1}{2$.", "brace"),
        (r"Find $x^{2$.", "brace"),
        (r"Find $\frac{1}}{2$.", "brace"),
        (r"$\}\frac{1}{2\{$", "brace"),
        (r"\begin{align} x &= 1", r"\begin"),
        (r"\begin{align}\begin{cases} x \end{align}\end{cases}", r"\end"),
        (r"x \end{align}", r"\end"),
        (r"$\left( \frac{1}{2}$", r"\left"),
        (r"$\frac{1}{2} \right)$", r"\right"),
        (r"$\right) \frac{1}{2} \left($", r"\right"),
        (r"Let $x = \frac{1}{2}. Find $y$.", "$"),
    ],
)
def test_texts_nobody_can_have_meant_are_named(text, why):
    assert why in why_broken(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tabs\tand\r\nlines.",
        "She has $5 and $3.50, he has $7.",
        r"She has $5; find $x$ with $x = \frac{1}{2}$.",
        r"US$ and \$ in $\frac{1}{2}$.",
        r"The set $\{1, 2$ and $\left\{ \frac{1}{2} \right.$, $\left[0, \frac{1}{2}\right)$",
        r"$f: A \leftarrow B \rightarrow C \leftrightarrow D$",
        r"\begin{tabular}{l} \begin{array}{l} 1 \\{} 2 \end{array} \end{tabular}",
        "Count every { in a string, then every } after it.",
        r"Count each '{' and '$' in a string of $n \leq 10$ letters.",
        "Fix this: `${HOME` and ```\nif (x) {\\begin\n``` for $x \\le 3$.",
        '[asy] label("$x", (0,0)); real f{ [/asy] Find $\\frac{1}{2}$.',
    ],
)
def test_sound_texts_are_not_broken(text):
    assert why_broken(text) is None


def test_no_shared_problem_or_gold_is_broken_but_three_of_aime25(shared):
    broken = [
        (row.file, why_broken(text), text[:40]) for row in shared for text in row[1:] if text and why_broken(text)
    ]
    assert broken == [
        # "\sqrt{-1}$.$ Let's"
        ("aime25", "an unmatched $", "Let $k$ be a real number such that the s"),
        # a form feed and "rac" for \frac
        ("aime25", "a control character", "The product\\[\\prod^{63}_{k=4} \x0crac{\\log_"),
        ("aime25", "a control character", "Let the sequence of rationals $x_1,x_2,\\"),
    ]


# --- lengths and repetition


def test_lengths_are_counted_in_words_or_letters_of_scripts_without_spaces():
    assert reason("Compute 17!") == "too_short"
    assert reason("Compute 1+1.") is None
    assert reason("x " * 11, max_words=10) == "too_long"
    assert reason("小明有五个苹果", languages=()) is None
    assert reason("", min_words=0) is None


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition("a b c d e") == repetition("a b c") == repetition("") == repetition("a b c d") == 0
    assert repetition("a b A, b a-b", n=2) == pytest.approx(3 / 5)
    assert repetition("Wait, let me check that again. " * 50) > 0.97
    assert repetition("等等我再检查一下" * 50) > 0.97


def test_a_looping_problem_is_repetition_but_a_regular_formula_is_not():
    assert reason("What is the sum of the two numbers? " * 9) == "repetition"
    assert reason("What is the sum of the two numbers? " * 9, max_repetition=1) is None
    assert reason("Find the value of $" + "1+3(" * 60 + "1" + ")" * 60 + "$ in the ring of integers.") is None
    assert reason("Find the area of " + "[asy] draw((0,0)--(1,0)--(1,1)); [/asy]" * 20 + " in square units.") is None


# --- language


@pytest.mark.slow
@pytest.mark.parametrize("text", FOREIGN)
def test_problems_in_other_languages_are_found_and_kept_where_asked_for(text):
    assert reason(text) == "language"
    assert reason(text, languages=("en", *FOREIGN_LANGUAGES)) is None
    assert reason(text, languages=()) is None


@pytest.mark.slow
@pytest.mark.parametrize("text", ENGLISH)
def test_english_with_few_function_words_is_kept(text):
    assert reason(text) is None


@pytest.mark.slow
def test_english_is_left_out_where_only_another_language_is_kept():
    assert reason("How many apples does she have now, if she ate 3 of 7?", languages=("de",)) == "language"


def test_prose_between_two_sums_of_money_is_read():
    assert reason("Anna hat $5 und ihre Schwester hat noch einmal so viel, also zusammen $10 und mehr.") == "language"


def test_too_little_prose_to_tell_is_kept():
    assert reason(r"Berechne $\sqrt{144} + 3$.") is None


@pytest.mark.slow
def test_an_unknown_language_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigurationError, match=r"data\.filters\.languages has 'xx'"):
        reason("Wie viele Tage hat ein Jahr und warum?", languages=("de", "xx"))


# --- leakage


@pytest.mark.parametrize(
    ("problem", "gold"),
    [
        (r"What is $3+4$? $\boxed{7}$", "7"),
        (r"Show that it is \boxed{ \frac{1}{2}. } indeed.", r"\frac{1}{2}"),
        (r"The answer is $\boxed{(1, \infty)}$. Prove it.", r"(1,\infty)"),
        ("What is 3+4? The answer is 7.", "7"),
        ("What is 3+4? The correct answer to this is: $7$", "7"),
        ("What is 3+4? the ANSWER is\n7\nThink.", "7"),
        ("What is half of 7? Answer: 3.5", "3.5"),
        ("What is half of 7? **Answer:** **3.5**\n\nThink hard.", "3.5"),
        ("Sum? Answer: 1,000", "1000"),
        ("Find the centre (answer: (3, 4)). Explain it.", "(3,4)"),
        ("What is 3+4 (Answer: 7)?", "7"),
        ("What is 3+4?\n#### 7", "7"),
        ("Your final answer should be 7, because 3+4 is.", "7"),
        ("Who won? Final answer = Anna", "Anna"),
        ("What is 3+4? Ans. 7", "7"),
        ("Which of A, B and C? [Ans: B]", "B"),
        ("The answer is $7$ since 3+4 is.", "$7.$"),
    ],
)
def test_a_problem_that_states_its_answer_leaks(problem, gold):
    assert reason(problem, gold) == "leakage"
    assert reason(problem, gold, leakage=False) is None


@pytest.mark.parametrize(
    ("problem", "gold"),
    [
        (r"What is 3+4? Put it in \boxed{}.", "7"),
        (r"What is 3+4? Put it in \boxed{}.", ""),
        (r"What is 3+4? Not \boxed{77}, nor \boxed{7/2}.", "7"),
        ("Anna has 7 apples and gets none. How many has she?", "7"),
        ("What is 3+4? The answer is 7 more than it seems.", "7"),
        ("What is 3+4? The answer is 7.5 at most.", "7"),
        ("What is 3+4? The answer is not 7.", "7"),
        ("Is 7 odd? Say so if the answer is yes.", "yes"),
        ("Is 7 odd? Answer: yes or no.", "yes"),
        ("Which one? Answer: A, B, or C.", "A"),
        ("Which one? The correct answer is: (A) 3 (B) 4", "(A)"),
        ("Which one? Answer choices: 1. red 2. blue", "1"),
        ("Which one is the answer: A. red B. blue", "A"),
        ("Give the answer rounded to the nearest 10.", "10"),
        ("#### Problem 7\nWhat is 3+4?", "7"),
        ("What is 3+4? Answer: 7", None),
    ],
)
def test_an_answer_that_merely_occurs_is_no_leak(problem, gold):
    assert reason(problem, gold) is None


# --- everything


@pytest.mark.slow
def test_the_filters_remove_no_shared_problem(shared):
    filters = ProblemFilter(Filters())
    assert [row for row in shared if filters.reason(row.problem, row.gold)] == []


PIECES = ["$", "$$", "{", "}", "\\", "\\left(", "\\right", "\\begin{a}", "\\end{a}", "[asy]", "```", "'", "求", "und"]
PIECES += ["answer: ", "####", "\\boxed{", "the answer is ", "7", ".", " ", "\n", "if ", "of ", "\ud800"]
TEXTS = st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(PIECES)).map("".join)


@given(TEXTS, TEXTS)
def test_any_text_gets_the_same_answer_twice(problem, answer):
    filters = ProblemFilter(Filters(min_words=0, max_words=50))
    found = filters.reason(problem, answer)
    assert found in {None, "too_long", "language", "repetition", "leakage"}
    assert found == filters.reason(problem, answer)
    assert why_broken(problem) == why_broken(problem)
    assert 0 <= repetition(problem) < 1
