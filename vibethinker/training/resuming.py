"""Training that goes on where it was: when its state is saved (`resumable`), and how a new process takes it up.

An update is the unit. At SIGTERM in the middle of one, rollouts and gradients are dropped, and what is saved is the end
of the last: its weights haven't moved since, and the random numbers and counts are those noted when the update began.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vibethinker import preemption
from vibethinker.errors import PreemptedError
from vibethinker.training import processes
from vibethinker.training.divergence import Watch
from vibethinker.training.phases import Phases
from vibethinker.training.rates import Slowed
from vibethinker.training.resumable import Remembers, Resumable


class Boundary(TrainerCallback):
    """Notes the state in which each update begins, and has the Trainer save after an update where it is due."""

    def __init__(self, resumable: Resumable, save_last: bool) -> None:
        self._resumable, self._save_last = resumable, save_last
        self.trainer: Any = None
        self.stopping = False
        self._noted: tuple[Any, dict[str, Any], int] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the state."""
        self.note()

    def note(self) -> None:
        """The state is that of the end of the last update, and what is saved from within the next."""
        noted = copy.deepcopy(remembered(self.trainer))
        seen = self.trainer.state.num_input_tokens_seen  # which TRL raises in the middle of one
        self._noted = _random_state(), noted, seen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the Trainer to save where it is due, and to end where any process was asked to."""
        self.stopping = any(processes.gathered([preemption.asked()]))
        over = state.global_step >= args.max_steps or control.should_training_stop
        due = self._save_last if over else self._resumable.due(state.global_step)
        control.should_save = self.stopping or due
        control.should_training_stop = control.should_training_stop or self.stopping

    def save_last(self) -> None:
        """Save the end of the last update, from the middle of the next."""
        if self._noted is None:
            return
        random_state, states, self.trainer.state.num_input_tokens_seen = self._noted
        _set_random_state(random_state)
        self.trainer.keep_state(states)


class Resuming(Slowed):
    """A Trainer that keeps its state by a `Resumable`, given to `train_resumably`.

    Attributes:
        phases: books what that takes.
        watch: says which updates are healthy; without one all are.
        note: called where the state that an update began with has become another, before any weight has moved.
    """

    resumable: Resumable | None = None
    note: Callable[[], None] = staticmethod(lambda: None)
    phases: Phases | None = None
    watch: Watch | None = None

    def interruptible(self) -> AbstractContextManager[None]:
        """Where a request to stop loses no more than an update under way. Of several processes each would leave alone,
        while the others wait for it: they leave together, after the update."""
        return preemption.let_through() if processes.count() == 1 else nullcontext()

    def keep_state(self, states: dict[str, Any]) -> None:
        """Save the state after the last update; `states` is what trainer and callbacks remember of it."""
        assert self.resumable is not None
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        with self.phases("checkpointing") if self.phases else nullcontext():
            self.resumable.save(
                self.state.global_step,
                lambda: Trainer._save_checkpoint(self, self.model, None),
                states,
                3 * trained,  # beside the weights, two moments
                self.watch.healthy if self.watch else self.state.global_step,
            )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.keep_state(remembered(self))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Where there is another adapter, as TRL's for the KL term, transformers leaves out the one in training.
        adapted = self.accelerator.unwrap_model(model or self.model)
        if len(getattr(adapted, "peft_config", ())) > 1 and not self.is_fsdp_enabled:
            adapted.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            adapted.set_adapter("default")

    def sample(self) -> list[dict[str, Any]]:
        """Some of what the last update was computed from, as evidence; nothing here."""
        return []

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self.resumable.aside) if self.resumable else super()._get_output_dir(trial)


def train_resumably(trainer: Resuming, resumable: Resumable, *, save_last: bool = False) -> None:
    """Train, from the newest checkpoint if there is one.

    Args:
        save_last: save after the last update too, since the step goes on for long; else it is finished once trained.

    Raises:
        PreemptedError: the process was asked to stop; the end of the last update is saved.
    """
    boundary = Boundary(resumable, save_last)
    trainer.resumable, boundary.trainer, trainer.note = resumable, trainer, boundary.note
    trainer.add_callback(boundary)
    start = resumable.newest()
    if start is not None:
        resumable.restore(start, remembering(trainer))
    with preemption.held():
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
            if not boundary.stopping and any(processes.gathered([preemption.asked()])):  # after the last update's end
                boundary.stopping = True
                trainer.keep_state(remembered(trainer))
            if not boundary.stopping and not save_last:
                preemption.finish()
        except PreemptedError:
            boundary.save_last()
            raise
        finally:
            resumable.finish()
    processes.barrier()  # the first process seals, and ends with any other that leaves
    if boundary.stopping:
        raise PreemptedError(preemption.ASKED)


def remembering(trainer: Trainer) -> dict[str, Remembers]:
    """The trainer and those of its callbacks that have a state of their own, by their classes' names."""
    found = [one for one in (trainer, *trainer.callback_handler.callbacks) if isinstance(one, Remembers)]
    return {type(one).__name__: one for one in found}


def remembered(trainer: Trainer) -> dict[str, Any]:
    """What each of them remembers now."""
    return {name: one.remembered() for name, one in remembering(trainer).items()}


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])
