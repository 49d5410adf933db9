"""The typed settings of what is computed, as pydantic models; `vibethinker.config` puts them together with those of how
(`vibethinker.operations`) and of the data, and loads them.

Every field states its unit and where its default comes from (see docs/recipe.md: [1.5B], [3B], [seed], [choice]).
A field marked `execution` changes how a step runs and never what it computes: it is left out of fingerprints.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from vibethinker import plugins
from vibethinker.fields import Settings, setting
from vibethinker.plugins import Named

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
CODE_DOMAIN = "code"


class EmbeddedModel(Settings):
    """The tiny Qwen3-architecture model that is trained on the spot when no other base is named."""

    hidden_size: int = setting(96, "width of the residual stream", unit="features", ge=16)
    layers: int = setting(4, "transformer blocks", ge=1)
    heads: int = setting(4, "query heads", ge=1)
    kv_heads: int = setting(2, "key and value heads", ge=1)
    intermediate_size: int = setting(256, "width of the gated MLP", unit="features", ge=16)
    vocabulary: int = setting(512, "tokens of its own tokenizer, 256 bytes and the special tokens included", ge=300)
    positions: int = setting(256, "longest sequence", unit="tokens", ge=64)
    steps: int = setting(300, "optimizer steps of its training", unit="steps", ge=1)
    batch_size: int = setting(128, "sequences an optimizer step", unit="sequences", ge=1)
    learning_rate: float = setting(3e-3, "learning rate of embeddings and norms (AdamW)", gt=0)
    matrix_rate: float = setting(0.02, "learning rate of the blocks' matrices (Muon)", gt=0)


class RopeScaling(Settings):
    """RoPE extension for stages longer than the model's positions.

    Not `dynamic`: there a token's rotation depends on the longest sequence of its batch in transformers, and doesn't in
    vLLM, so that training and rollouts would disagree.
    """

    type: Literal["yarn", "linear"] = setting("yarn", "the extension method's name in transformers")
    factor: float = setting(..., "new positions divided by the model's own", gt=1)


class BaseModelSettings(Settings):
    """Where the recipe starts."""

    source: str = setting("embedded", "`embedded`, a folder, a .gguf file, or a hub id", source="seed: BASE_MODEL")
    revision: str | None = setting(None, "commit or tag of the hub repository; pin it for a reproducible run")
    architecture: dict[str, Any] | None = setting(
        None, "config.json of a hub model, so that `plan` needs neither network nor download"
    )
    backend: Literal["transformers", "unsloth"] = setting(
        "transformers", "library that loads and patches the model for training", source="seed", execution=True
    )
    precision: Literal["float32", "bfloat16"] = setting("float32", "type of weights and computation")
    quantization: Literal["none", "nf4"] = setting("none", "4-bit loading of frozen weights, with LoRA only")
    rope_scaling: RopeScaling | None = setting(None, "needed when a stage's context exceeds the model's positions")
    embedded: EmbeddedModel = setting(EmbeddedModel, "the tiny default model")


class Prompts(Settings):
    """The one prompt format that SFT, probing, RL and evaluation share."""

    system: str | None = setting(None, "system message")
    math_suffix: str = setting("", "appended to each maths problem")
    code_suffix: str = setting("", "appended to each code problem")
    thinking: bool | None = setting(
        None, "the chat template's switch `enable_thinking`, where it has one; None is the template's own default"
    )
    open_think: bool = setting(False, "end each prompt in an open `<think>`, where the chat template doesn't")


class Lora(Settings):
    """Low-rank adapters."""

    rank: int = setting(16, "rank of the update", source="seed", ge=1)
    alpha: int = setting(16, "scale; the update is multiplied by alpha / rank", source="seed", ge=1)
    dropout: float = setting(0.0, "dropout on the adapter's input", ge=0, lt=1)


class Sft(Settings):
    """Supervised training of a specialist on full reasoning traces, loss on the answer side."""

    method: Literal["full", "lora"] = setting("full", "train all weights, or adapters on all seven projections")
    lora: Lora = setting(Lora, "adapter settings, used by `method: lora`")
    steps: int = setting(1000, "optimizer steps a specialist", unit="steps", source="seed: SPECTRUM_STEPS", ge=1)
    batch_size: int = setting(128, "sequences an optimizer step", unit="sequences", source="3B", ge=1)
    max_length: int = setting(
        4096, "longest trace with its prompt; longer ones are left out and counted", unit="tokens"
    )
    learning_rate: float = setting(5e-5, "peak learning rate", source="3B", gt=0)
    final_learning_rate: float = setting(8e-8, "learning rate at the end of the cosine", source="3B", ge=0)
    warmup: float = setting(0.05, "share of the steps that warm up", source="3B", ge=0, lt=1)
    weight_decay: float = setting(0.0, "decoupled weight decay", ge=0)
    packing: bool = setting(False, "join traces to full sequences of max_length", source="3B")
    checkpoints: int = setting(4, "evenly spaced checkpoints kept for probing, the last step included", ge=1)
    optimizer: Literal["adamw", "adamw_8bit"] = setting("adamw", "AdamW, or with moments of 8 bits (bitsandbytes)")
    micro_tokens: int = setting(
        16384, "most tokens of a forward and backward pass, padding included", unit="tokens", ge=1, execution=True
    )


class Hard(Settings):
    """A second stage of supervised training, on what the first one's model rarely solves; it has `spectrum.sft`'s
    settings but for its steps."""

    accuracy: float = setting(0.25, "problems whose share of right samples is at most this", source="3B", ge=0, lt=1)
    epochs: int = setting(2, "passes over their traces", source="3B", ge=1)
    samples: int = setting(8, "completions a problem that the share is measured by", unit="samples", source="3B", ge=1)
    temperature: float = setting(1.0, "sampling temperature", gt=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "longest completion", unit="tokens", ge=1)


class Probing(Settings):
    """Choice of each domain's specialist by unbiased Pass@K."""

    samples: int = setting(32, "rollouts a problem, n", unit="samples", ge=1)
    k: int = setting(8, "K of the Pass@K that chooses, K <= n", source="1.5B; seed: DIVERSITY_K", ge=1)
    report_k: tuple[int, ...] = setting((1, 4, 8, 16), "further K to report, those <= n")
    temperature: float = setting(1.0, "sampling temperature", gt=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "longest completion", unit="tokens", ge=1)
    select: Literal["pass_at_k", "pass_at_1", "loss", "last"] = setting(
        "pass_at_k", "what chooses: Pass@K, or for comparison Pass@1, the mean training loss since the checkpoint "
        "before, or none of them: the last checkpoint", source="1.5B", later=True,
    )  # fmt: skip


class Search(Settings):
    """The search over fusion weights, by Pass@K on the probe splits of all domains."""

    trials: int = setting(16, "weightings that are tried, the uniform one first", ge=2)
    samples: int | None = setting(None, "rollouts a problem; None: those of probing", unit="samples", ge=1)


class Fusion(Settings):
    """Merging of the specialists' weights; docs/fusion.md has each method's formula."""

    method: Annotated[str, Named(plugins.FUSION)] = setting(
        "linear", "theta = sum of w_i theta_i, or another way to merge", source="1.5B"
    )
    weights: dict[str, float] | None = setting(None, "weight of each domain, normalised to sum 1; None is uniform")
    scale: float = setting(1.0, "what the merged change from the base is multiplied by", source="TIES", gt=0)
    density: float | None = setting(
        None, "share of each change that stays; None: 0.2 of the largest (ties), 0.1 at random (dare)",
        source="TIES, DARE", gt=0, le=1,
    )  # fmt: skip
    t: float = setting(0.5, "slerp's place between the first domain's model (0) and the second's (1)", ge=0, le=1)
    search: Search | None = setting(None, "search for the weights (slerp: for t) instead; None: none")
    fallback: Literal["none", "best_specialist"] = setting(
        "none", "go on with the best specialist where it beats the fused model on the validation splits of all domains"
    )

    @property
    def kept(self) -> float:
        """The density, or the method's own."""
        return self.density or KEPT.get(self.method, 1.0)

    @property
    def generates(self) -> bool:
        """Whether the step that fuses generates completions, for a search or a comparison."""
        return self.search is not None or self.fallback != "none"

    @property
    def is_plugin(self) -> bool:
        """Whether another distribution brings the method."""
        return self.method not in plugins.BUILT_IN[plugins.FUSION]

    def semantic(self) -> dict[str, Any]:
        """What this method reads: settings of other methods, and those added since and left alone, change no
        fingerprint. A plugin may read all of them."""
        values = super().semantic()
        unread = [name for name, methods in READ_BY.items() if self.method not in methods and not self.is_plugin]
        unread += ["search"] if self.search is None else []
        unread += ["fallback"] if self.fallback == "none" else []
        return {name: value for name, value in values.items() if name not in unread}

    @model_validator(mode="after")
    def _weights_come_from_one_place(self) -> Fusion:
        if self.weights is not None and (self.method in ("pass_at_k", "slerp") or self.search is not None):
            reason = "with search" if self.search is not None else f"by method {self.method}"
            raise ValueError(f"spectrum.fusion.weights are found otherwise {reason}: leave one of the two out")
        if self.search is not None and self.method == "pass_at_k":
            raise ValueError("spectrum.fusion.method pass_at_k has weights from probing: search with method linear")
        return self


CHANGES = ("task_arithmetic", "ties", "dare")  # methods that merge changes from the base
KEPT = {"ties": 0.2, "dare": 0.1}
READ_BY = {"scale": CHANGES, "density": ("ties", "dare"), "t": ("slerp",)}


class Spectrum(Settings):
    """Phase 1."""

    mode: Literal["per_domain", "trajectory"] = setting(
        "per_domain", "one run a domain, or one on the mixture whose checkpoints every domain chooses from"
    )
    seed: int | None = setting(
        None, "seed of specialists, probes, fusion and what follows; None: `seed`. Another one shares data and base "
        "with other runs", ge=0,
    )  # fmt: skip
    sft: Sft = setting(Sft, "supervised training")
    hard: Hard | None = setting(None, "a second stage of it on hard problems; unset is none")
    probing: Probing = setting(Probing, "checkpoint choice")
    fusion: Fusion = setting(Fusion, "weight fusion")


class Objective(Settings):
    """MGPO and its relatives, each a choice of these; docs/objectives.md has the formulas and the named methods."""

    lambda_: float = setting(1.0, "weight of the entropy term; 0 is plain GRPO", alias="lambda", ge=0)
    group_size: int = setting(16, "rollouts a prompt, G", source="seed: NUM_GENERATIONS", ge=2)
    batch_size: int = setting(2048, "rollouts an update, a multiple of group_size (prompts x G)", unit="rollouts", ge=2)
    updates: int = setting(
        1, "optimizer steps over each batch of rollouts, each on its own share of them; the first is on-policy, and "
        "only in further ones do clip ranges and `ratio` act", source="3B", ge=1, later=True,
    )  # fmt: skip
    scale_rewards: Literal["group", "none"] = setting(
        "group", "advantages are divided by the deviation of their group's rewards, or by nothing", later=True
    )
    mean_over: Literal["rollouts", "tokens", "limit"] = setting(
        "rollouts", "the loss: the mean over rollouts of the mean over their tokens; the mean over all tokens of the "
        "update; or the mean over rollouts of their tokens' sum by the longest completion's length",
        source="1.5B", later=True,
    )  # fmt: skip
    ratio: Literal["token", "sequence"] = setting(
        "token", "policy ratio of each token, or of each rollout: the geometric mean of its tokens'", later=True
    )
    epsilon_low: float = setting(0.2, "lower clip range of the ratio", ge=0, lt=1)
    epsilon_high: float = setting(0.2, "upper clip range of the ratio", ge=0)
    beta: float = setting(0.0, "weight of the KL term to the stage's start; the paper prints none", source="1.5B", ge=0)
    learning_rate: float = setting(1e-6, "peak learning rate; 1e-5 is usual with LoRA", gt=0)
    warmup: float = setting(0.0, "share of the steps that warm up", ge=0, lt=1)
    max_grad_norm: float = setting(1.0, "gradient clipping", gt=0)
    method: Literal["full", "lora"] = setting("full", "train all weights, or adapters merged at the stage's end")
    lora: Lora = setting(Lora, "adapter settings, used by `method: lora`")
    temperature: float = setting(1.0, "rollout temperature", gt=0)
    top_p: float = setting(1.0, "rollout nucleus", gt=0, le=1)
    max_prompt_tokens: int = setting(1024, "longer prompts are left out and counted", unit="tokens", ge=1)
    truncated: Literal["zero", "mask"] = setting("zero", "reward of truncated rollouts: 0 and kept, or left out")
    difficulty_samples: int = setting(
        0, "rollouts a problem that measure the start model's accuracy; problems at 0 or 1 are dropped; 0 is off",
        source="3B", ge=0,
    )  # fmt: skip
    optimizer: Literal["adamw", "adamw_8bit"] = setting("adamw", "AdamW, or with moments of 8 bits (bitsandbytes)")
    importance_cap: float = setting(
        2.0, "truncated importance sampling: the most that a token counts for being likelier in training than in the "
        "engine that sampled it; 0 is off", source="3B", ge=0,
    )  # fmt: skip
    refill: int = setting(
        0, "further generations an update may take to put other problems in the place of groups of one verdict", ge=0
    )
    overlong: int = setting(
        0, "a completion's last tokens before its limit over which its reward falls, in all by overlong_penalty; 0 is "
        "off", unit="tokens", ge=0, later=True,
    )  # fmt: skip
    overlong_penalty: float = setting(
        0.5, "what a completion at its limit loses; DAPO's 1 between rewards of -1 and 1 is 0.5 between 0 and 1", gt=0,
        later=True,
    )  # fmt: skip
    long2short: float = setting(0.0, "Long2Short reward scale (0.2 in the paper); 0 is off", source="3B", ge=0)


class Stage(Settings):
    """One stage of the curriculum."""

    name: str = setting(..., "a short name, shown everywhere", pattern=r"^[a-z0-9][a-z0-9-]*$")
    context: int = setting(..., "prompt and completion together", unit="tokens", source="seed: MAX_SEQ_LENGTH_STAGE<n>")
    steps: int = setting(500, "updates", unit="steps", source="seed: SIGNAL_STEPS", ge=1)
    rollouts: int | None = setting(
        None, "rollouts in all, those of refills included, with which the stage ends even before `steps`; its last "
        "update takes what is left. A multiple of batch_size; None: no such end", unit="rollouts", ge=1, later=True,
    )  # fmt: skip
    reward: Annotated[str, Named(plugins.REWARDS)] = setting("math", "what judges the answers")
    domains: tuple[str, ...] | None = setting(None, "domains whose problems it trains on; None: those of its reward")
    train_data: str | None = setting(None, "a JSONL file of problems in place of the data step's")
    validation_data: str | None = setting(None, "a JSONL file that the stage's end is measured on")
    overrides: dict[str, Any] = setting(dict, "settings of `signal.objective` that differ in this stage")


class Validation(Settings):
    """Measurement of a signal stage on held-out problems while it is trained: those of the stage's `validation_data`,
    else the data step's validation split."""

    every: int = setting(0, "updates between two measurements, beside the start and the end; 0 is off", ge=0)
    problems: int = setting(64, "held-out problems, chosen by lot, at most", unit="problems", ge=1)
    samples: int = setting(4, "completions a problem, sampled as rollouts are", unit="samples", ge=1)
    select: Literal["last", "best_val"] = setting(
        "last", "which weights a stage ends with: the last, or those of the measured update with the most right samples"
    )


class Signal(Settings):
    """Phase 2."""

    seed: int | None = setting(
        None, "seed of the stages, of the evaluations of their models and of distillation; None: `spectrum.seed`, or "
        "`seed`. Another one shares all that comes before with other runs", ge=0,
    )  # fmt: skip
    objective: Objective = setting(Objective, "what all stages share")
    stages: tuple[Stage, ...] = setting((), "the curriculum, in order")
    validation: Validation = setting(Validation, "measurement while a stage is trained")
    micro_tokens: int = setting(
        16384, "most tokens of a forward and backward pass, padding included", unit="tokens", ge=1, execution=True
    )

    def measurement(self) -> dict[str, Any]:
        """What a step's settings say of validation: nothing where it is off, since such a step is what it was before
        there was any."""
        return {"validation": self.validation.semantic()} if self.validation.every else {}


class Selection(Settings):
    """Which verified traces a student learns from, by its mean negative log-likelihood a token of them; each number is
    a share of what there is of a domain, or of one of its buckets."""

    buckets: int = setting(4, "parts of equal size into which a domain's traces are sorted by length", ge=1)
    shortest: float = setting(0.05, "a domain's shortest traces, dropped", ge=0, lt=1)
    lowest: float = setting(
        0.3, "a bucket's traces of lowest score, dropped: the student would write them anyway", ge=0, lt=1
    )
    outliers: float = setting(0.02, "a bucket's traces of highest score, dropped", ge=0, lt=1)


class Distillation(Settings):
    """Phase 3: a student learns from verified traces of the signal stages' models. It is trained by `spectrum.sft`'s
    settings but for its steps."""

    student: Literal["base", "fusion"] = setting("fusion", "the model that learns")
    epochs: int = setting(2, "passes over the selected traces", ge=1)
    samples: int = setting(8, "completions a training problem of each stage's model", unit="samples", ge=1)
    temperature: float = setting(1.0, "sampling temperature", gt=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "longest completion", unit="tokens", ge=1)
    selection: Selection = setting(Selection, "which of their right ones are learned from")


class SetSampling(Settings):
    """How one evaluation set is sampled where it differs from the others."""

    temperature: float | None = setting(None, "sampling temperature; None is evaluation.temperature", ge=0)
    top_p: float | None = setting(None, "nucleus; None is evaluation.top_p", gt=0, le=1)


class Evaluation(Settings):
    """Measurement of base, specialists, fused model and every stage's model."""

    samples: int = setting(8, "completions a problem, n", unit="samples", ge=1)
    k: tuple[int, ...] = setting((8,), "K of the reported pass@k, each <= samples")
    temperature: float = setting(1.0, "sampling temperature; 0 takes the likeliest token", ge=0)
    top_p: float = setting(0.95, "nucleus", source="1.5B", gt=0, le=1)
    max_tokens: int = setting(1024, "longest completion", unit="tokens", ge=1)
    sets: dict[str, SetSampling] = setting(
        dict, "evaluation set → its own temperature and nucleus; `code` is every set of programs without its own",
        source="1.5B",
    )  # fmt: skip

    def of(self, name: str, code: bool) -> Evaluation:
        """How the set of this name is sampled; `code` tells whether its problems ask for programs."""
        own = self.sets.get(name) or (self.sets.get(CODE_DOMAIN) if code else None)
        changed = {key: value for key, value in (own.model_dump() if own else {}).items() if value is not None}
        return self.model_copy(update={**changed, "sets": {}})


class Verification(Settings):
    """The verifiers."""

    math_seconds: float = setting(5.0, "time limit of one answer", unit="s", gt=0)
    workers: int = setting(1, "verifier processes a step", ge=1, execution=True)


class Sandbox(Settings):
    """Where programs that a model wrote run, and what each may use."""

    tier: Literal["auto", "bubblewrap", "landlock", "rlimits"] = setting(
        "auto", "how they are confined; auto is the strongest that holds on the machine", execution=True
    )
    allow_unsafe: bool = setting(
        False, "run them under resource limits alone, which is no sandbox, where nothing stronger holds", execution=True
    )
    python: str | None = setting(
        None,
        "the interpreter that runs them; None is the steps' own. As root, programs are another user's",
        execution=True,
    )
    seconds: float = setting(
        5.0, "wall time of a program over all its tests, and CPU time of a process", unit="s", gt=0
    )
    memory: int = setting(512, "memory of all its processes, and address space of each", unit="MiB", ge=64)
    output: int = setting(1024, "output of a test case, and size of a file", unit="KiB", ge=1)
    processes: int = setting(32, "processes at once", ge=2)
    files: int = setting(64, "open files of a process", ge=16)
    disk: int = setting(64, "size of its private folder", unit="MiB", ge=1)
