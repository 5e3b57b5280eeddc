"""Phone profiles: what is known of a phone, every number with its source, and the memory budget that follows.

What lives here: the schema of ``profiles/*.yaml``. What must not: reading files (``profile_file.py``), running
anything, and any number of a phone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from artifacts.errors import EdgewrightError
from device_farm.chips import Isa
from device_farm.limiter import AppState, LimiterLimits

Confidence = Literal["measured", "published", "weak", "policy"]
Value = TypeVar("Value")


class ProfileError(EdgewrightError):
    """A profile that cannot be read; the message says file, line, key and what would be valid."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sourced(_Strict, Generic[Value]):
    """One number or fact of a phone, with where and when it was read and how far to trust it.

    ``measured``: on that phone, by the source. ``published``: by the maker, the operating system's source or a
    standard. ``weak``: aggregators, communities, carried over from another phone. ``policy``: our choice, without a
    source.
    """

    value: Value
    source: str = Field(min_length=10)
    date: str = Field(
        pattern=r"^\d{4}-\d{2}(-\d{2})?$", description="year-month, or year-month-day, of the source or of its reading"
    )
    confidence: Confidence


PositiveInt = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Cpu(_Strict):
    """``clusters``: "4x Cortex-A78", the fastest first. ``clocks_hz``: the highest of each, where known.

    ``isa``: the extensions that every core has, of those that quantized kernels ask for.
    """

    cores: Sourced[PositiveInt]
    clusters: Sourced[Annotated[tuple[str, ...], Field(min_length=1)]]
    clocks_hz: Sourced[tuple[PositiveFloat, ...]] | None = None
    isa: Sourced[tuple[Isa, ...]]


class IosLimit(_Strict):
    """The footprint at which iOS kills a foreground app, from operating system ``since`` ("14.0") on.

    None: no figure is known.
    """

    since: str = Field(pattern=r"^\d+(\.\d+)*$")
    footprint_bytes: Sourced[PositiveInt]
    increased_footprint_bytes: Sourced[PositiveInt] | None


class IosMemory(_Strict):
    """``single_mapping_bytes``: the largest mapping without the extended-virtual-addressing entitlement."""

    limits: tuple[IosLimit, ...] = Field(min_length=1)
    single_mapping_bytes: Sourced[PositiveInt] | None
    uncertainty: Sourced[Fraction]


class Limiter(_Strict):
    """Limits of Android's Memory Limiter, from operating system ``since`` on; ``limiter.py`` is the rule.

    ``swap_bytes``: what it allows of swap in either state; None: not known, and counted as none.
    """

    since: str = Field(pattern=r"^\d+(\.\d+)*$")
    visible_bytes: Sourced[PositiveInt]
    not_visible_bytes: Sourced[PositiveInt]
    swap_bytes: Sourced[Size] | None


class AndroidMemory(_Strict):
    """``budget_bytes`` is what lmkd leaves an app: a policy, or observed, since Android publishes none.

    ``limiter`` is that of Android 17; None: none applies. ``app_state``: whether the app is on screen; one that runs
    as a foreground service is not. ``play_p90_bytes``: what Google Play asks for from February 2027.
    ``background_bytes``: of files that other apps read again and again meanwhile. The rest are lmkd's settings (AOSP).
    """

    budget_bytes: Sourced[PositiveInt]
    uncertainty: Sourced[Fraction]
    low_ram: Sourced[bool]
    thrashing_limit_percent: Sourced[PositiveFloat]
    thrashing_decay_percent: Sourced[PositiveFloat]
    psi_partial_stall_ms: Sourced[PositiveInt]
    psi_complete_stall_ms: Sourced[PositiveInt]
    psi_window_ms: Sourced[PositiveInt]
    swap_free_low_percent: Sourced[PositiveFloat]
    zram_bytes: Sourced[Size]
    limiter: Limiter | None = None
    app_state: Sourced[AppState] | None = None
    play_p90_bytes: Sourced[PositiveInt] | None = None
    background_bytes: Sourced[Size] | None = None


@dataclass(frozen=True)
class MemoryBudget:
    """What the sandbox enforces and the verdict compares with; sizes in bytes over the interpreter's baseline.

    Up to ``comfortable_bytes`` a run fits, up to ``limit_bytes`` it is tight. ``limiter``: what Android 17 allows the
    app, beside that. ``single_mapping_bytes``: the largest file that iOS maps whole. ``play_p90_bytes``: what Google
    Play warns of. ``background_bytes``: of files that others read meanwhile.
    """

    rule: Literal["android", "ios"]
    limit_bytes: int
    comfortable_bytes: int
    thrashing_limit_percent: float | None
    swap_bytes: int
    source: str
    confidence: Confidence
    limiter: LimiterLimits | None = None
    single_mapping_bytes: int | None = None
    play_p90_bytes: int | None = None
    background_bytes: int = 0


class Profile(_Strict):
    """What every phone has. Read one with ``load_profile``; it is an ``AndroidProfile`` or an ``IosProfile``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    notes: str
    platform: Literal["android", "ios"]
    os_version: Sourced[str]
    ram_bytes: Sourced[PositiveInt]
    soc: Sourced[str] | None = Field(description="one of chips.py; null for a chip that is none of them")
    cpu: Cpu
    bandwidth_bytes_per_s: Sourced[PositiveFloat] | None
    sustained_factor: Sourced[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None, description="speed after ten minutes, of that at the start"
    )

    @abstractmethod
    def budget(
        self,
        peak_memory_bytes: int | None = None,
        *,
        os_version: str | None = None,
        increased: bool = False,
        app_state: AppState | None = None,
    ) -> MemoryBudget:
        """The memory budget of an app on this phone.

        ``peak_memory_bytes`` is a recipe's own limit: it can make the budget smaller, not larger than the phone's.
        ``os_version`` chooses among the limits of versions (default: the profile's), ``increased`` asks for iOS's
        increased-memory-limit entitlement, ``app_state`` says whether Android shows the app (default: the profile's).
        Raises ProfileError when the profile has no figure for that.
        """

    def _budget(
        self, limit: Sourced[PositiveInt], uncertainty: float, wish: int | None, thrash: float | None, swap: int
    ) -> MemoryBudget:
        own = limit.value if wish is None else min(wish, limit.value)
        # a recipe's own limit is exact; the uncertainty is that of the phone's
        comfortable = min(own, int(limit.value * (1 - uncertainty)))
        return MemoryBudget(self.platform, own, comfortable, thrash, swap, limit.source, limit.confidence)


class AndroidProfile(Profile):
    """An Android phone."""

    platform: Literal["android"]
    memory: AndroidMemory

    def budget(
        self,
        peak_memory_bytes: int | None = None,
        *,
        os_version: str | None = None,
        increased: bool = False,
        app_state: AppState | None = None,
    ) -> MemoryBudget:
        """See ``Profile.budget``; the Memory Limiter's limits count from their OS version on."""
        if increased:
            raise ProfileError(f"profile {self.name}: the increased-memory-limit entitlement exists on iOS only")
        memory, version = self.memory, _version(os_version or self.os_version.value)
        thrashing, swap = memory.thrashing_limit_percent.value, memory.zram_bytes.value
        budget = self._budget(memory.budget_bytes, memory.uncertainty.value, peak_memory_bytes, thrashing, swap)
        limiter = None
        if memory.limiter is not None and version >= _version(memory.limiter.since):
            state = app_state or (memory.app_state.value if memory.app_state else "visible")
            size = memory.limiter.visible_bytes if state == "visible" else memory.limiter.not_visible_bytes
            limiter = LimiterLimits(
                state, size.value, memory.limiter.swap_bytes.value if memory.limiter.swap_bytes else 0
            )
        return replace(
            budget,
            limiter=limiter,
            play_p90_bytes=memory.play_p90_bytes.value if memory.play_p90_bytes else None,
            background_bytes=memory.background_bytes.value if memory.background_bytes else 0,
        )


class IosProfile(Profile):
    """An iPhone or iPad."""

    platform: Literal["ios"]
    memory: IosMemory

    def budget(
        self,
        peak_memory_bytes: int | None = None,
        *,
        os_version: str | None = None,
        increased: bool = False,
        app_state: AppState | None = None,
    ) -> MemoryBudget:
        """See ``Profile.budget``; the newest limit that is not newer than the OS version counts."""
        if app_state is not None:
            raise ProfileError(f"profile {self.name}: app_state belongs to Android's Memory Limiter; leave it out")
        version = os_version or self.os_version.value
        since = [limit for limit in self.memory.limits if _version(limit.since) <= _version(version)]
        if not since:
            raise ProfileError(f"profile {self.name}: no memory limit is known for iOS {version}")
        newest = max(since, key=lambda limit: _version(limit.since))
        figure = newest.increased_footprint_bytes if increased else newest.footprint_bytes
        if figure is None:
            raise ProfileError(
                f"profile {self.name}: no figure is known for increased-memory-limit on iOS {version}; leave it out"
            )
        budget = self._budget(figure, self.memory.uncertainty.value, peak_memory_bytes, None, 0)
        mapping = self.memory.single_mapping_bytes
        return replace(budget, single_mapping_bytes=mapping.value if mapping else None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
