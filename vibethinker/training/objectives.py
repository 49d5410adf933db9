"""The objectives that `signal.objective` can be, in TRL's words, and the punishment of overlong completions.

docs/objectives.md has their formulas and sources. What is not TRL's own: the weights of MGPO and Long2Short (`mgpo`),
and refills and several updates of a batch (`trainer`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vibethinker.settings import Objective

LOSSES = {"rollouts": "grpo", "tokens": "dapo", "limit": "dr_grpo"}


def trl_arguments(objective: Objective) -> dict[str, Any]:
    """What GRPOConfig calls the objective's settings."""
    return {
        "loss_type": LOSSES[objective.mean_over],
        "scale_rewards": objective.scale_rewards,
        "importance_sampling_level": objective.ratio,
        "epsilon": objective.epsilon_low,
        "epsilon_high": objective.epsilon_high,
        "beta": objective.beta,
    }


def overlong(lengths: Tensor, limit: int, last: int, penalty: float) -> Tensor:
    """What completions lose for their length (arXiv 2503.14476, eq. 13, times `penalty`): nothing up to limit − last
    tokens, `penalty` at the limit, in between in proportion.

    Args:
        lengths: in tokens.
        limit: the longest that a completion can be.
        last: how many tokens before the limit are punished, at least 1.
    """
    return penalty * (lengths - (limit - last)).clamp(min=0, max=last) / last
