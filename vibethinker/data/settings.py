"""The typed settings of phase 0; `vibethinker.settings` has those of the other rooms."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, field_validator, model_validator

from vibethinker.data.presets import resolved
from vibethinker.data.registry import source
from vibethinker.fields import Settings, setting

AUTO = "auto"
_PLAIN_NAME = re.compile(r"\w[\w.+-]*")
_NAMING = "which goes into file names: give it a `name` of letters, digits, _ . + and -, the first no sign"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWERED = ("columns", "gsm8k", "boxed", "olympiadbench", "gpqa")  # formats without tests
_OF_COLUMNS = ("problem", "answer", "solution", "tests")  # those that other formats find by themselves


class Procedural(Settings):
    """Generated problems with exact answers; no evaluation or probe problem is in a training set."""

    difficulty: int = setting(1, "size of the numbers and number of reasoning steps", ge=1, le=3)
    problems: int = setting(3000, "distinct problems a domain, over all splits", unit="problems", ge=16)
    evaluation: int = setting(100, "problems a domain kept for evaluation", unit="problems", ge=1)


class Columns(Settings):
    """Names of a file's columns; a dot walks into objects."""

    problem: str | tuple[str, ...] = setting("problem", "the question's text, or several columns that make it up")
    answer: str | None = setting("answer", "the gold answer, or None for code")
    solution: str | None = setting(None, "a full worked solution, or a list of them, if the file has any")
    domain: str | None = setting(None, "the label of each row, if one file holds several domains")
    tests: str | None = setting(None, "tests of a code problem, in the form of `grade`")
    id: str | None = setting(None, "a stable id; otherwise one is derived from the problem's text")
    difficulty: str | None = setting(None, "a whole number, or text that ends with one, such as `Level 3`")


class Hub(Settings):
    """Files of a data set on the hub."""

    id: str = setting(..., "the data set, such as openai/gsm8k", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = setting(..., "the commit that is read, all 40 digits of it, so that a run repeats")
    files: tuple[str, ...] = setting(..., "files or patterns such as data/train-*.parquet", min_length=1)

    @model_validator(mode="after")
    def _is_pinned(self) -> Hub:
        if not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"hub.revision {self.revision!r} of {self.id} is no commit, and a branch or tag moves: give the 40 "
                "hexadecimal digits of a commit from the data set's page"
            )
        return self


class DataFile(Settings):
    """One source of problems: a local file or folder, or files of the hub, and how its rows are read."""

    preset: str | None = setting(None, "a named source whose settings these are laid over")
    path: str | None = setting(None, "a JSONL, JSON, CSV, Parquet or Arrow file; relative ones start at directory")
    hub: Hub | None = setting(None, "files of the hub, read where no path is given")
    name: str | None = setting(
        None, "what the source is called, in file names too; None is its file's name without ending"
    )
    format: Literal[
        "columns", "gsm8k", "boxed", "mbpp", "humaneval", "apps", "livecodebench", "olympiadbench", "gpqa"
    ] = setting("columns", "by column names, or the form in which a well-known set is published")
    columns: Columns = setting(Columns, "the file's column names")
    domain: str | None = setting(None, "the domain of rows without a label; `auto` has each row classified")
    labels: dict[str, str] | None = setting(
        None, "label in columns.domain, in whatever case → domain; None takes the label itself"
    )
    strip: tuple[str, ...] = setting((), "texts taken off the start or end of every problem")
    select: dict[str, tuple[int, int] | tuple[date, date]] = setting(
        dict, "column → smallest and largest number, or first and last day, of the rows that are used"
    )
    no_answer: tuple[str, ...] = setting((), "answers that are none, such as `proof`")
    limit: int | None = setting(None, "read at most this many rows", unit="rows", ge=1)
    max_row: int = setting(4, "longest row; a longer one can't be meant and counts as bad", unit="MiB", ge=1)
    licence: str = setting("unstated", "the licence its publisher states")
    note: str | None = setting(None, "what whoever reads the data card should know")

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, values: Any) -> Any:
        return resolved(values) if isinstance(values, dict) and values.get("preset") else values

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str | None) -> str | None:
        if name is not None and not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"a source of data can't be named {name!r}, {_NAMING}")
        return name

    @field_validator("labels")
    @classmethod
    def _fold_labels(cls, labels: dict[str, str] | None) -> dict[str, str] | None:
        if labels is None:
            return None
        folded: dict[str, str] = {}
        for label, domain in labels.items():
            key = label.strip().lower()
            if key in folded:
                raise ValueError(f"labels has {key!r} twice, but for case and space: leave one of them out")
            folded[key] = domain
        return folded

    @model_validator(mode="after")
    def _has_a_place(self) -> DataFile:
        if self.path is None and self.hub is None:
            raise ValueError("a source of data needs a path, a hub data set or a preset that names one")
        if self.columns.domain is None and self.labels is not None:
            raise ValueError(f"labels of {self.title} map nothing: set columns.domain to the column of the labels")
        standard = Columns()
        for name in _OF_COLUMNS if self.format != "columns" else ():
            if getattr(self.columns, name) != getattr(standard, name):
                raise ValueError(
                    f"columns.{name} of {self.title} would not be read, since the format {self.format} has columns of "
                    "its own: take it out, or set format to columns"
                )
        return self

    @property
    def tests_programs(self) -> bool:
        """Whether its problems may have tests, which run programs."""
        return self.columns.tests is not None or self.format not in _ANSWERED

    @property
    def title(self) -> str:
        """What the source is called."""
        if self.name is not None:
            return self.name
        last = (self.path or self.hub.id).rstrip("/").rpartition("/")[2]  # type: ignore[union-attr]
        return last.split(".")[0] or last


# A text names a benchmark.
Measured = Annotated[
    DataFile,
    BeforeValidator(lambda one: source(one) if isinstance(one, str) else one, json_schema_input_type=str | DataFile),
]


class Decontamination(Settings):
    """Removal of training problems that share a word n-gram with an evaluation problem."""

    enabled: bool = setting(True, "compare every training problem with every evaluation set", source="1.5B")
    ngram: int = setting(10, "length of the compared word n-grams", unit="words", source="1.5B", ge=2)
    whitelist: bool = setting(True, "let phrases that unrelated problems share not count")
    phrases: tuple[str, ...] = setting((), "further stock phrases")
    against: tuple[str, ...] = setting((), "further evaluation files", source="seed: DECONTAM_EVAL_DATASETS")


class Filters(Settings):
    """What a problem must be like to be trained on."""

    min_words: int = setting(3, "shortest problem", unit="words", ge=0)
    max_words: int = setting(1000, "longest problem", unit="words", ge=1)
    languages: tuple[str, ...] = setting(("en",), "ISO 639-1 codes that are kept; empty keeps all")
    max_repetition: float = setting(0.3, "largest share of repeated word 4-grams in a problem", gt=0, le=1)
    max_trace_repetition: float = setting(0.5, "the same in a trace, which repeats its formulas", gt=0, le=1)
    leakage: bool = setting(True, "leave out problems whose text states their answer")


class Duplicates(Settings):
    """Problems that are another one in other words."""

    near: float | None = setting(
        0.8, "Jaccard similarity of word n-grams from which, with equal numbers and answer, one goes; None is off",
        gt=0, le=1,
    )  # fmt: skip
    ngram: int = setting(3, "length of those n-grams", unit="words", ge=1)


class Classifier(Settings):
    """Domains of rows without a label (`domain: auto`)."""

    keywords: dict[str, tuple[str, ...]] = setting(dict, "further words and phrases that speak for a domain")
    teacher: bool = setting(False, "let the teacher decide where keywords don't")
    otherwise: str | None = setting(None, "domain of rows that nothing decides; None leaves them out as unmapped")


class Style(Settings):
    """One way of asking the teacher."""

    name: str = setting(..., "shown in every trace's sampling settings", pattern=r"^[a-z0-9][a-z0-9-]*$")
    system: str | None = setting(None, "system message; None is the run's own")
    suffix: str | None = setting(None, "appended to the problem; None is the run's own for its kind")


class Budget(Settings):
    """What asking a server may cost; nothing is asked beyond it."""

    tokens: int | None = setting(None, "prompt and completion tokens of the whole data step", unit="tokens", ge=1)
    usd: float | None = setting(None, "money, by the prices below", unit="USD", gt=0)
    input_price: float = setting(0.0, "price of a million prompt tokens", unit="USD", ge=0)
    output_price: float = setting(0.0, "price of a million completion tokens", unit="USD", ge=0)
    then: Literal["stop", "use"] = setting("stop", "when it is used up: end the run, or go on with what there is")


class Server(Settings):
    """An OpenAI-compatible server."""

    url: str = setting(..., "its base, up to and with /v1; it is recorded with the run", pattern=r"^https?://")
    key_variable: str = setting("OPENAI_API_KEY", "environment variable of the key; unset sends none", execution=True)
    key_secret: str | None = setting(None, "Prefect Secret block of the key, which goes first", execution=True)
    concurrency: int = setting(16, "requests under way at once", ge=1, execution=True)
    requests_per_minute: float | None = setting(None, "rate limit", gt=0, execution=True)
    tokens_per_minute: float | None = setting(None, "rate limit, prompt and completion", gt=0, execution=True)
    timeout: float = setting(600, "longest wait for one answer", unit="s", gt=0, execution=True)
    retries: int = setting(6, "further tries of a request that failed", ge=0, execution=True)
    backoff: float = setting(1.0, "wait before the first of them, doubled each time", unit="s", gt=0, execution=True)
    extra: dict[str, Any] = setting(
        dict, "further fields of each request's body; recorded with the run, so no place for keys"
    )

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = None
        # The address itself isn't told: a part of it may be a secret.
        if parts is None or not parts.hostname:
            raise ValueError("data.teacher.server.url names no host: write it like http://localhost:8000/v1")
        if "@" in parts.netloc or "?" in url or "#" in url:
            raise ValueError(
                "data.teacher.server.url has a user, password, query or fragment, which would be recorded with the "
                "run: leave them out, and give the key by key_variable or key_secret"
            )
        return url


class Votes(Settings):
    """Labels by majority vote for problems without gold. [3B]"""

    enabled: bool = setting(False, "label what has no gold by the answer most samples agree on, and mark it")
    share: float = setting(0.5, "smallest share of the samples that must agree", gt=0, le=1)


class Teacher(Settings):
    """Who writes reasoning traces: a model here, or a server. The student itself is one too (rejection sampling)."""

    model: str | None = setting(None, "folder, hub id, or a server's name of it; None asks nobody", source="seed")
    engine: Literal["transformers", "vllm", "server"] = setting("transformers", "what runs it")
    server: Server | None = setting(None, "where `engine: server` is")
    ask: Literal["lacking", "all"] = setting("lacking", "for problems without a verified trace, or for every problem")
    samples: int = setting(4, "solutions asked for a problem", unit="samples", source="1.5B", ge=1)
    temperatures: tuple[float, ...] = setting((0.6, 0.8, 1.0), "samples take turns with them", min_length=1)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "longest trace", unit="tokens", ge=1)
    styles: tuple[Style, ...] = setting((), "ways of asking, which samples take turns with; empty is the run's own")
    budget: Budget = setting(Budget, "what a server may cost")
    votes: Votes = setting(Votes, "labels where there is no gold")

    @model_validator(mode="after")
    def _agrees(self) -> Teacher:
        if self.model is not None and (self.engine == "server") != (self.server is not None):
            raise ValueError("data.teacher.engine server and data.teacher.server need each other: set both or neither")
        if (self.budget.usd is not None) and not (self.budget.input_price or self.budget.output_price):
            raise ValueError("data.teacher.budget.usd needs prices: set input_price and output_price")
        if len({style.name for style in self.styles}) != len(self.styles):
            raise ValueError("data.teacher.styles has two of one name: give each its own")
        return self


class Diversity(Settings):
    """Which of a problem's verified traces are kept."""

    ngram: int = setting(3, "length of the compared word n-grams", unit="words", ge=1)
    distance: float = setting(
        0.1, "1 - Jaccard similarity that kept traces of one problem differ by at least", ge=0, le=1
    )
    embedding: str | None = setting(None, "model folder whose mean hidden states give a second distance for the card")


class DataSettings(Settings):
    """Phase 0."""

    source: Literal["procedural", "files"] = setting("procedural", "generated problems, or `train` and `evaluation`")
    procedural: Procedural = setting(Procedural, "generated problems")
    directory: str = setting(".", "where relative paths start", source="seed: DATA_DIR", execution=True)
    train: tuple[DataFile, ...] = setting((), "sources of training, probing and validation problems")
    evaluation: tuple[Measured, ...] = setting(
        (), "sources that are only evaluated on, one set each; a name is a benchmark's"
    )
    evaluation_limit: int | None = setting(None, "problems taken of each evaluation set", unit="problems", ge=1)
    bad_rows: float = setting(
        0.01, "share of rows that can't be read, of a source, from which the run stops", ge=0, lt=1
    )
    classifier: Classifier = setting(Classifier, "domains of rows without a label")
    filters: Filters = setting(Filters, "what a problem must be like")
    decontamination: Decontamination = setting(Decontamination, "n-gram overlap with evaluation sets")
    duplicates: Duplicates = setting(Duplicates, "near copies among training problems")
    held_out: float = setting(
        0.05, "share of the problems that each of probe and validation is taken from; the rest of it is used for "
        "nothing, so that a growing set moves no problem from one split to another", gt=0, lt=0.5,
    )  # fmt: skip
    probe: int = setting(48, "problems a domain that choose checkpoints, at most", unit="problems", ge=1)
    validation: int = setting(48, "problems a domain that report the chosen checkpoint, at most", unit="problems", ge=1)
    max_problems: int | None = setting(None, "problems used a domain", source="seed: DATA_PREP_MAX_PROBLEMS", ge=1)
    solutions: int = setting(3, "different verified traces kept a problem", source="seed: DATA_PREP_N_SOLUTIONS", ge=1)
    given_solutions: bool = setting(True, "make traces of the solutions that came with the problems, if they verify")
    diversity: Diversity = setting(Diversity, "which traces are kept")
    teacher: Teacher = setting(Teacher, "source of reasoning traces")
    tokenizer: str | None = setting(None, "model folder whose tokens the data card counts; None counts words")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> DataSettings:
        places: dict[str, str] = {}
        for file in (*self.train, *self.evaluation):
            place = file.path or file.hub.id  # type: ignore[union-attr]
            if not _PLAIN_NAME.fullmatch(file.title):
                raise ValueError(f"the data source {place} would be called {file.title!r}, {_NAMING}")
            if file.title in places:
                raise ValueError(
                    f"two sources of data.train and data.evaluation are called {file.title!r}, {places[file.title]} "
                    f"and {place}: give one of them another `name`"
                )
            places[file.title] = place
        return self
