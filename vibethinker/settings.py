"""The typed settings of what is computed, as pydantic models; `vibethinker.config` puts them together with those of how
(`vibethinker.operations`) and of the data, and loads them.

Every field states its unit and where its default comes from (see RECIPE.md: [1.5B], [3B], [seed], [choice]).
A field marked `execution` changes how a step runs and never what it computes: it is left out of fingerprints.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
CODE_DOMAIN = "code"


class Settings(BaseModel):
    """Base of all settings: immutable, defaults validated, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=True)

    def semantic(self) -> dict[str, Any]:
        """The settings that determine what is computed, as plain JSON values."""
        values = self.model_dump(mode="json", by_alias=True)
        return _without_execution(self, values)


def _without_execution(model: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, field in type(model).model_fields.items():
        if (field.json_schema_extra or {}).get("execution"):
            continue
        child, key = getattr(model, name), field.alias or name
        if isinstance(child, BaseModel):
            kept[key] = _without_execution(child, values[key])
        elif isinstance(child, (list, tuple)) and child and isinstance(child[0], BaseModel):
            kept[key] = [_without_execution(c, v) for c, v in zip(child, values[key], strict=True)]
        else:
            kept[key] = values[key]
    return kept


def setting(
    default: Any = ..., text: str = "", *, unit: str = "", source: str = "choice", execution: bool = False, **kw: Any
) -> Any:
    """A documented field: its meaning, unit, the source of its default, and whether it is execution only."""
    extra = {"unit": unit, "source": source, "execution": execution}
    if callable(default):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **kw)
    return Field(default, description=text, json_schema_extra=extra, **kw)


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


class Probing(Settings):
    """Choice of each domain's specialist by unbiased Pass@K."""

    samples: int = setting(32, "rollouts a problem, n", unit="samples", ge=1)
    k: int = setting(8, "K of the Pass@K that chooses, K <= n", source="1.5B; seed: DIVERSITY_K", ge=1)
    report_k: tuple[int, ...] = setting((1, 4, 8, 16), "further K to report, those <= n")
    temperature: float = setting(1.0, "sampling temperature", gt=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "longest completion", unit="tokens", ge=1)


class Fusion(Settings):
    """Merging of the specialists' weights."""

    method: Literal["linear"] = setting("linear", "theta = sum of w_i theta_i", source="1.5B")
    weights: dict[str, float] | None = setting(None, "weight of each domain, normalised to sum 1; None is uniform")


class Spectrum(Settings):
    """Phase 1."""

    mode: Literal["per_domain", "trajectory"] = setting(
        "per_domain", "one run a domain, or one on the mixture whose checkpoints every domain chooses from"
    )
    sft: Sft = setting(Sft, "supervised training")
    probing: Probing = setting(Probing, "checkpoint choice")
    fusion: Fusion = setting(Fusion, "weight fusion")


class Objective(Settings):
    """MGPO and its relatives; RECIPE.md, Phase 2."""

    lambda_: float = setting(1.0, "weight of the entropy term; 0 is plain GRPO", alias="lambda", ge=0)
    group_size: int = setting(16, "rollouts a prompt, G", source="seed: NUM_GENERATIONS", ge=2)
    batch_size: int = setting(2048, "rollouts an update, a multiple of group_size (prompts x G)", unit="rollouts", ge=2)
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
    long2short: float = setting(0.0, "Long2Short reward scale (0.2 in the paper); 0 is off", source="3B", ge=0)


class Stage(Settings):
    """One stage of the curriculum."""

    name: str = setting(..., "a short name, shown everywhere", pattern=r"^[a-z0-9][a-z0-9-]*$")
    context: int = setting(..., "prompt and completion together", unit="tokens", source="seed: MAX_SEQ_LENGTH_STAGE<n>")
    steps: int = setting(500, "updates", unit="steps", source="seed: SIGNAL_STEPS", ge=1)
    reward: Literal["math", "code"] = setting("math", "verifier of the answers")
    domains: tuple[str, ...] | None = setting(None, "domains whose problems it trains on; None: those of its reward")
    train_data: str | None = setting(None, "a JSONL file of problems in place of the data step's")
    validation_data: str | None = setting(None, "a JSONL file that the stage's end is measured on")
    overrides: dict[str, Any] = setting(dict, "settings of `signal.objective` that differ in this stage")


class Signal(Settings):
    """Phase 2."""

    objective: Objective = setting(Objective, "what all stages share")
    stages: tuple[Stage, ...] = setting((), "the curriculum, in order")
    micro_tokens: int = setting(
        16384, "most tokens of a forward and backward pass, padding included", unit="tokens", ge=1, execution=True
    )


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
