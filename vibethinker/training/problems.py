"""The problems of a signal stage: those that it trains on, and those that it is only measured on."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from vibethinker.data.folding import fold
from vibethinker.data.prompts import all_prompt_ids
from vibethinker.data.schema import Problem, read_records
from vibethinker.data.sources import read_stage_file
from vibethinker.errors import DataError
from vibethinker.settings import Objective, Prompts, Stage
from vibethinker.steps import StepContext


@dataclass(frozen=True)
class StageProblems:
    """Where a stage's problems come from, and which of them it can use."""

    context: StepContext
    stage: Stage
    objective: Objective
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase

    def training(self) -> tuple[list[Problem], int]:
        """Those with prompts that aren't too long, and how many there were; each has what its reward needs.

        Raises:
            DataError: one can't be judged, or none is left.
        """
        file = self.stage.train_data
        problems = self._of_data("rl") if file is None else self.read(file)
        kept = self._usable(problems)
        if not kept:
            raise DataError(
                f"None of the {len(problems)} problems of stage {self.stage.name} has a prompt of at most "
                f"{self._limit} tokens: raise signal.objective.max_prompt_tokens, or give other problems."
            )
        return kept, len(problems)

    def held_out(self, training: Sequence[Problem], most: int, seed: int) -> list[Problem]:
        """At most so many problems of the stage's validation file, else of the data step's validation split, chosen by
        lot; none whose text, folded, is that of a training problem.

        Raises:
            DataError: there is none.
        """
        if self.stage.validation_data is not None:
            problems = self.read(self.stage.validation_data)
        else:
            problems = self._of_data("validation") if "data" in self.context.inputs else []
        trained = {fold(problem.problem) for problem in training}
        apart = [problem for problem in problems if fold(problem.problem) not in trained]
        if len(apart) < len(problems):
            self.context.emit.warning(
                f"{len(problems) - len(apart)} of {len(problems)} validation problems are training problems too: "
                "left out."
            )
        kept = self._usable(apart)
        if not kept:
            raise DataError(
                f"Stage {self.stage.name} has no held-out problem to be measured on: give its validation_data, or set "
                "signal.validation.every to 0."
            )
        chosen = sorted(random.Random(f"{seed}:validation").sample(range(len(kept)), min(most, len(kept))))
        return [kept[number] for number in chosen]

    def read(self, path: str) -> list[Problem]:
        """The problems of a file that the stage names."""
        return read_stage_file(Path(self.context.execution["paths"][path]), self.stage.reward)

    def _of_data(self, split: str) -> list[Problem]:
        files = [
            self.context.inputs["data"] / split / f"{domain}.parquet" for domain in self.context.settings["domains"]
        ]
        return [problem for file in files for problem in read_records(file, Problem)]

    def _usable(self, problems: Sequence[Problem]) -> list[Problem]:
        coded = self.stage.reward == "code"
        needed = "tests" if coded else "gold answer"
        for problem in problems:
            if (problem.tests if coded else problem.answer) is None:
                raise DataError(
                    f"Problem {problem.id} has no {needed}, and stage {self.stage.name} rewards {self.stage.reward}: "
                    "remove it, or change the stage's reward."
                )
        ids = all_prompt_ids(self.tokenizer, problems, self.prompts)
        kept = [problem for problem, prompt in zip(problems, ids, strict=True) if len(prompt) <= self._limit]
        if len(kept) < len(problems):
            self.context.emit.warning(
                f"{len(problems) - len(kept)} of {len(problems)} prompts exceed {self._limit} tokens: left out."
            )
        return kept

    @property
    def _limit(self) -> int:
        """The longest prompt, in tokens; an answer needs one more of the model's positions."""
        config = json.loads((self.context.inputs["model"] / "config.json").read_text())
        positions = config.get("max_position_embeddings") or sys.maxsize
        return min(self.objective.max_prompt_tokens, positions - 1)
