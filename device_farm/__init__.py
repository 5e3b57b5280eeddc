"""Emulated phones: profiles, the memory sandbox and verdicts.

What lives here: everything that knows a phone. What must not: runtimes and models (``runtime_tests/``), compiling. May
import ``artifacts`` only.

>>> from device_farm import load_profile, run, assess_memory
>>> budget = load_profile("android-4gb").budget()
>>> result = run(command, limit_bytes=budget.limit_bytes, rule=budget.rule, cold_paths=[artifact])  # doctest: +SKIP
>>> assess_memory(result, budget, "android-4gb", "2,048 tokens").verdict  # doctest: +SKIP
'fits'
"""

from device_farm.latency import Found, modelled, predict, predict_network
from device_farm.memory import CacheDrop, Split, cached_bytes, drop_page_cache, read_split
from device_farm.profile import (
    AndroidProfile,
    IosProfile,
    MemoryBudget,
    Profile,
    ProfileError,
)
from device_farm.profile_file import list_profiles, load_profile
from device_farm.sandbox import SandboxResult, available_mechanisms, run
from device_farm.verdict import (
    assess_latency,
    assess_memory,
    assess_modelled_memory,
    by_rule,
    limit_needed,
    not_assessed,
    not_for_platform,
    peak_phase,
    stand_in,
)
from device_farm.watch import PhaseMemory

__all__ = [
    "AndroidProfile",
    "CacheDrop",
    "Found",
    "IosProfile",
    "MemoryBudget",
    "PhaseMemory",
    "Profile",
    "ProfileError",
    "SandboxResult",
    "Split",
    "assess_latency",
    "assess_memory",
    "assess_modelled_memory",
    "available_mechanisms",
    "by_rule",
    "cached_bytes",
    "drop_page_cache",
    "limit_needed",
    "list_profiles",
    "load_profile",
    "modelled",
    "not_assessed",
    "not_for_platform",
    "peak_phase",
    "predict",
    "predict_network",
    "read_split",
    "run",
    "stand_in",
]
