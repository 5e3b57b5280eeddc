"""The recipe: one strict model that is also its documentation.

What lives here: the shape of a recipe, and `recipe_model`, which composes the full schema from the options that
targets and quantization methods declare for themselves. What must not: the name of any target, method or phone,
or anything that reads a weight.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    SerializeAsAny,
    Tag,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from recipes.delivery import Publish, Tolerances
from recipes.fields import (
    BUILT_IN_TEXT,
    RecipePath,
    Text,
    check_activations,
    check_commit,
    check_glob,
    check_group,
    check_hub_id,
    check_name,
    check_path,
    check_questions,
)
from recipes.quantities import Bytes, Decibels, Fraction, Seconds, Share, TokensPerSecond

DEFAULT_METHOD = "rtn"


def _empty_mapping(value: Any) -> Any:
    """`onnx:` with nothing after it means `onnx: {}`."""
    return {} if value is None else value


class Strict(BaseModel):
    """Unknown keys are errors, nothing is converted silently, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Checkpoint(Strict):
    """Where the weights come from: a folder, or a repository of the Hub at one commit."""

    path: RecipePath | None = Field(None, min_length=1, description="folder of the checkpoint, relative to the recipe")
    hub: Annotated[str, AfterValidator(check_hub_id)] | None = Field(None, description="owner/name on the Hub")
    revision: Annotated[str | None, BeforeValidator(check_commit)] = Field(
        None, description="full commit; null takes the newest at the first download and writes it to a lock file"
    )
    config: RecipePath | None = Field(
        None, min_length=1, description="config.json that stands for the checkpoint's until that is there"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("needs exactly one of the keys path (a folder) and hub (owner/name)")
        if self.hub is None and self.revision is not None:
            raise ValueError("revision belongs to hub, not to path")
        return self


class Rule(Strict):
    """How the weights whose slot name matches are stored. The first rule that matches wins.

    A slot name is the Hugging Face tensor name without `.weight`: `model.layers.3.mlp.down_proj`, `lm_head`.
    The method's own options stand beside these keys.
    """

    match: Annotated[str, AfterValidator(check_glob)] = Field(description="glob over slot names")
    bits: Literal[4, 8, 16] = Field(description="16 leaves the tensor in half precision")
    group: Annotated[Literal["channel"] | int, BeforeValidator(check_group)] = Field(
        32, description="weights per scale along the input, or channel"
    )
    symmetric: bool = True
    activations: Annotated[Literal["int8"] | None, BeforeValidator(check_activations)] = Field(
        None,
        description="int8: what convolutions read and give has 8 bits too, where the runtime has kernels for it",
    )
    min_snr: Decibels | None = Field(
        None,
        description="that a component's outputs keep with activations: int8; the convolutions that cost most keep "
        "floats, as many as that takes, by measured sensitivity",
    )
    method: str = DEFAULT_METHOD

    @model_validator(mode="after")
    def _activations_fit(self) -> Self:
        if self.min_snr is not None and self.activations is None:
            raise ValueError("min_snr belongs to activations: int8; give both or neither")
        if self.activations is not None and (self.bits, self.group, self.symmetric) != (8, "channel", True):
            raise ValueError(
                "activations: int8 needs bits: 8, group: channel and symmetric: true, which its kernels take"
            )
        return self


class Calibration(Strict):
    """What data-driven methods look at: text, or images with what is asked about them."""

    text: Text = BUILT_IN_TEXT
    images: RecipePath | None = Field(
        None,
        min_length=1,
        description="for models that see: a folder of images, or a .jsonl file of questions with their answers, "
        "relative to the recipe",
    )
    tokens: int = Field(16384, ge=1, le=2**30)
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.images is not None and self.text != BUILT_IN_TEXT:
            raise ValueError("looks at text or at images, not at both")
        return self


class Budget(Strict):
    """What the choice of bits and group for each tensor has to stay within. Rules then give method and symmetry."""

    size: Bytes | None = Field(None, description="of all weights as the quantized checkpoint stores them")
    max_perplexity_increase: Fraction | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.size is None) == (self.max_perplexity_increase is None):
            raise ValueError("needs exactly one of the keys size and max_perplexity_increase")
        return self


class Quantize(Strict):
    rules: Annotated[tuple[Rule, ...], Field(strict=False)]
    calibration: Calibration | None = None
    budget: Budget | None = None

    @model_validator(mode="after")
    def _every_rule_can_win(self) -> Self:
        if not self.rules:
            raise ValueError('rules is empty; a first rule could be {match: "*", bits: 4}')
        seen: dict[str, int] = {}
        for at, rule in enumerate(self.rules):
            first = seen.get("*", seen.get(rule.match))
            if first is not None:
                raise ValueError(
                    f"rules[{at}] ({rule.match}) can never win: rules[{first}] ({self.rules[first].match}) "
                    "matches first; put the special rule above the general one"
                )
            seen[rule.match] = at
        if self.budget is not None and any(rule.activations is not None for rule in self.rules):
            raise ValueError(
                "budget chooses bits and group of weights; activations: int8 needs those that its rule gives"
            )
        return self


class Context(Strict):
    max_tokens: int = Field(ge=2, le=2**24, description="prompt and answer together; sets the size of the KV cache")


Tiles = Annotated[int, Field(ge=1, le=2**10)]


class Vision(Strict):
    """How large the images are that a model is compiled to see: what memory is planned for.

    Without this section a model whose images are optional (mistral3) is compiled as its text side alone, and one that
    sees tiles (smolvlm) takes as many as the published processors make of an image.
    """

    max_image: Annotated[int, Field(ge=1, le=2**14)] | None = Field(
        None, description="mistral3: longest edge of an image in pixels; larger ones are reduced to it"
    )
    max_tiles: Tiles | None = Field(
        None, description="smolvlm: tiles of an image, the one that shows all of it counted; larger ones are reduced"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max_image is None) == (self.max_tiles is None):
            raise ValueError("needs exactly one of the keys max_image and max_tiles")
        return self


class Quality(Strict):
    """Limits against the unquantized checkpoint, on text or on clips of speech that nothing was calibrated on."""

    text: Text = BUILT_IN_TEXT
    max_perplexity_increase: Fraction | None = None
    min_top1_agreement: Share | None = None
    max_mean_kl: float | None = Field(None, gt=0)
    clips: RecipePath | None = Field(
        None,
        min_length=1,
        description="talking heads: a file of clips, relative to the recipe",
    )
    max_psnr_drop: float | None = Field(
        None, gt=0, description="talking heads: dB that pictures may be farther from the truth than unquantized"
    )
    max_blendshape_change: float | None = Field(
        None, gt=0, description="talking heads: RMS by which weights may differ from the unquantized ones"
    )
    min_lip_closure: Share | None = Field(
        None, description="talking heads: of frames in which the mouth must be shut or open"
    )

    def of_text(self) -> str | None:
        """The first limit that is set and is of text."""
        named = ("max_perplexity_increase", "min_top1_agreement", "max_mean_kl")
        return next((key for key in named if getattr(self, key) is not None), None)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        named = ("max_psnr_drop", "max_blendshape_change", "min_lip_closure")
        if self.clips is None and (key := next((key for key in named if getattr(self, key) is not None), None)):
            raise ValueError(f"{key} is judged on clips: name a file of them")
        return self


class Task(Strict):
    """Questions with their right answers, asked of the artifact as it ships and of the unquantized checkpoint."""

    file: Annotated[RecipePath, AfterValidator(check_questions)] = Field(
        min_length=1, description="a .jsonl file relative to the recipe, one question a line"
    )
    max_answer_tokens: int = Field(64, ge=1, le=4096, description="where an answer is cut off")
    max_accuracy_drop: Fraction | None = Field(
        None, description="how many of all questions fewer may be answered right than unquantized"
    )
    min_agreement: Share | None = Field(None, description="of all answers that are the unquantized checkpoint's")


class ProfileLimits(Strict):
    """Limits on one phone. A figure without a limit is reported and gates nothing."""

    max_tiles: Tiles | None = Field(None, description="smolvlm: of an image on this phone, where an app makes fewer")
    peak_memory: Bytes | None = None
    time_to_first_token: Seconds | None = None
    decode: TokensPerSecond | None = None
    first_frame: Seconds | None = None
    frame_time: Seconds | None = None
    os_version: Annotated[str, Field(pattern=r"^\d+(\.\d+)*$")] | None = Field(
        None, description="whose limits hold; without it the profile's"
    )
    app_state: Literal["visible", "not visible"] | None = Field(
        None, description="Android 17: a foreground service is not visible; without it the profile's"
    )
    increased_memory_limit: bool = Field(False, description="iOS: the app has the increased-memory-limit entitlement")


class Validation(Strict):
    quality: Quality | None = None
    task: Task | None = None
    profiles: dict[str, Annotated[ProfileLimits, BeforeValidator(_empty_mapping)]] = Field(default_factory=dict)
    arm64: bool = Field(False, description="onnx and tvm packages also run on the profiles' CPUs, emulated")
    strict: bool = Field(False, description="a tight verdict fails too")
    allow_unassessed: bool = Field(False, description="a limit that nothing can assess yet passes")
    allow_throttled: bool = Field(False, description="what Android 17's Memory Limiter slows down passes")


class Recipe(Strict):
    """One recipe: which checkpoint, how to quantize it, for which runtimes, and what must hold on which phones."""

    name: Annotated[str, AfterValidator(check_name)]
    checkpoint: Checkpoint
    quantize: Quantize
    context: Context
    vision: Vision | None = None
    targets: dict[str, SerializeAsAny[BaseModel]] = Field(min_length=1)
    validation: Validation = Field(default_factory=Validation, alias="validate")
    baseline: Tolerances | None = None
    publish: Publish | None = None

    _origin: Path | None = PrivateAttr(None)

    @property
    def origin(self) -> Path | None:
        """The file that the recipe was read from; None when it was made in Python."""
        return self._origin

    def resolve(self, path: str) -> Path:
        """A path of the recipe, which is relative to its file (to the working directory when it has none)."""
        return (self._origin.parent if self._origin else Path()) / os.path.expanduser(path)

    @property
    def digest(self) -> str:
        """sha256 (hex) over what the recipe says, defaults included; layout, comments and place do not count."""
        content = self.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a recipe file, or a recipe that ships with the package by its name. Raises RecipeError."""
        from recipes.load import load

        return load(name_or_path, cls)

    @classmethod
    def made(cls, content: Mapping[str, Any], origin: str | Path) -> Self:
        """A recipe that no file says, with its paths as those of a file: of what `model_dump(by_alias=True)` gives."""
        recipe = cls.model_validate(content)
        recipe._origin = Path(origin).resolve()
        return recipe


def recipe_model(
    targets: Mapping[str, type[BaseModel]],
    methods: Mapping[str, type[BaseModel]],
    profiles: Collection[str] | None = None,
) -> type[Recipe]:
    """The full recipe schema.

    `targets` and `methods` give each name the model of its options (both should forbid extra keys); a rule's options
    are validated against its method's. `profiles` are the known phones (None: any name); a path to a YAML file passes.
    """
    members: list[Any] = [
        Annotated[create_model("Rule_" + name, __base__=(Rule, options), method=_method_field(name)), Tag(name)]
        for name, options in methods.items()
    ]
    rules: Any = tuple[Annotated[_union(members), Discriminator(_method_of)], ...]  # type: ignore[misc]  # made at run time
    quantize = create_model("Quantize", __base__=Quantize, rules=(Annotated[rules, Field(strict=False)], ...))
    fields: dict[str, Any] = {
        name: (Annotated[options, BeforeValidator(_empty_mapping)] | None, None) for name, options in targets.items()
    }
    target_options = create_model("Targets", __base__=Strict, **fields)
    limits: Any = dict[
        Annotated[str, AfterValidator(_known_profile(profiles))],
        Annotated[ProfileLimits, BeforeValidator(_empty_mapping)],
    ]
    validation = create_model("Validation", __base__=Validation, profiles=(limits, Field(default_factory=dict)))
    return create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        quantize=(quantize, ...),
        targets=(Annotated[target_options, WrapValidator(_as_mapping), PlainSerializer(_dump_targets)], ...),
        validation=(validation, Field(default_factory=validation, alias="validate")),
    )


def _method_field(name: str) -> Any:
    return (Literal[name], name) if name == DEFAULT_METHOD else (Literal[name], ...)


def _union(members: list[Any]) -> Any:
    union = members[0]
    for member in members[1:]:
        union = union | member
    return union


def _method_of(rule: Any) -> str:
    method = rule.get("method", DEFAULT_METHOD) if isinstance(rule, dict) else getattr(rule, "method", DEFAULT_METHOD)
    return method if isinstance(method, str) else repr(method)


def _known_profile(profiles: Collection[str] | None) -> Callable[[str], str]:
    def check(name: str) -> str:
        if profiles is not None and name not in profiles and not name.endswith((".yaml", ".yml")):
            raise PydanticCustomError("unknown_profile", "unknown phone profile", {"known": sorted(profiles)})
        return check_path(name)

    return check


def _as_mapping(value: Any, validate: Callable[[Any], BaseModel]) -> dict[str, BaseModel]:
    options = validate({name: _empty_mapping(v) for name, v in value.items()} if isinstance(value, dict) else value)
    if not value:
        raise ValueError("names no target")
    return {name: getattr(options, name) for name in value}


def _dump_targets(targets: dict[str, BaseModel]) -> dict[str, Any]:
    return {name: options.model_dump(mode="json") for name, options in targets.items()}
