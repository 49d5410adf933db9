"""A smaller learning rate for a training that goes on from a checkpoint, whose optimizer and schedule hold the old
one."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer


class Slowed(Trainer):
    """A Trainer whose schedule is multiplied by a constant, whatever optimizer and warm-up it has.

    Attributes:
        rate: the constant; it is set before training, and holds for what is loaded from a checkpoint too.
    """

    rate: float = 1.0

    def create_scheduler(self, *args: Any, **options: Any) -> LambdaLR:
        """The library's own schedule, at `rate`."""
        schedule = super().create_scheduler(*args, **options)
        self._base_rates = [self.rate * base for base in schedule.base_lrs]
        self._apply_rate()
        return schedule

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._apply_rate()

    def _apply_rate(self) -> None:
        if self.rate == 1:
            return
        schedule, groups = self.lr_scheduler, self.optimizer.param_groups
        schedule.base_lrs = list(self._base_rates)
        for group, base, share in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = base, base * share(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
