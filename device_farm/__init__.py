"""Emulated phones: profiles, the memory sandbox and verdicts.

What lives here: everything that knows a phone. What must not: runtimes and models (``runtime_tests/``), compiling. May
import ``artifacts`` only.

>>> from device_farm import load_profile, run, assess_memory
>>> budget = load_profile("android-4gb").budget()
>>> result = run(command, limit_bytes=budget.limit_bytes, rule=budget.rule, cold_paths=[artifact])  # doctest: +SKIP
>>> assess_memory(result, budget).verdict  # doctest: +SKIP
<Verdict.FITS: 'fits'>
"""

from device_farm.memory import CacheDrop, Split, cached_bytes, drop_page_cache, read_split
from device_farm.profile import (
    AndroidProfile,
    IosProfile,
    MemoryBudget,
    Profile,
    ProfileError,
    list_profiles,
    load_profile,
)
from device_farm.sandbox import SandboxResult, available_mechanisms, run
from device_farm.verdict import (
    Assessment,
    Verdict,
    assess_memory,
    assess_modelled_memory,
    latency_not_assessed,
    passes,
)
from device_farm.watch import PhaseMemory

__all__ = [
    "AndroidProfile",
    "Assessment",
    "CacheDrop",
    "IosProfile",
    "MemoryBudget",
    "PhaseMemory",
    "Profile",
    "ProfileError",
    "SandboxResult",
    "Split",
    "Verdict",
    "assess_memory",
    "assess_modelled_memory",
    "available_mechanisms",
    "cached_bytes",
    "drop_page_cache",
    "latency_not_assessed",
    "list_profiles",
    "load_profile",
    "passes",
    "read_split",
    "run",
]
