"""What is built for which machine: triples, CPU variants, and TVM's description of each. Imports no framework.

A variant is one library. The loader (`native/edgewright.cc` on a phone, the session here) takes the first whose CPU
features are all there; `features` uses the names of Linux's /proc/cpuinfo.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Any, Literal

from compiler.targets.tvm.isa import AVX2, AVX512_VNNI, NEON, NEON_DOTPROD, NEON_I8MM, Isa

HOST = "host"
ANDROID_API = 24
IOS_VERSION = 16.0
ARM_FEATURES = ("neon", "dotprod", "i8mm")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")

Container = Literal["shared", "archive"]


@dataclass(frozen=True)
class Variant:
    """One library. features: what /proc/cpuinfo must list; target: TVM's target, without its triple."""

    isa: Isa
    features: tuple[str, ...]
    target: dict[str, Any]

    @property
    def name(self) -> str:
        return self.isa.name


@dataclass(frozen=True)
class Triple:
    """A machine: its name in recipes and folders, LLVM's triple, what is linked, and its variants, best first."""

    name: str
    llvm: str
    system: Literal["android", "ios", "linux"]
    container: Container
    variants: tuple[Variant, ...]

    def target(self, variant: Variant) -> dict[str, Any]:
        """TVM's target for one variant."""
        return {"kind": "llvm", "mtriple": self.llvm, **variant.target}


_X86 = (
    Variant(AVX512_VNNI, _AVX512, {"mcpu": "cascadelake"}),
    Variant(AVX2, ("avx2", "fma", "f16c"), {"mcpu": "x86-64-v3"}),
)
_ARM = {
    "i8mm": Variant(NEON_I8MM, ("asimddp", "i8mm"), {"mattr": ["+neon", "+dotprod", "+i8mm"]}),
    "dotprod": Variant(NEON_DOTPROD, ("asimddp",), {"mattr": ["+neon", "+dotprod"]}),
    "neon": Variant(NEON, ("asimd",), {"mattr": ["+neon"]}),
}


def host() -> Triple:
    """This machine, with every variant of its architecture."""
    machine = platform.machine()
    if machine in ("x86_64", "AMD64"):
        return Triple(HOST, "x86_64-unknown-linux-gnu", "linux", "shared", _X86)
    return Triple(HOST, "aarch64-unknown-linux-gnu", "linux", "shared", tuple(_ARM.values()))


def parse(name: str, features: tuple[str, ...]) -> Triple:
    """The triple of a recipe. Raises ValueError saying what is known instead."""
    unknown = [f for f in features if f not in _ARM]
    if unknown or not features:
        raise ValueError(f"CPU features {list(unknown)} are not known; {', '.join(ARM_FEATURES)} are")
    variants = tuple(v for key, v in _ARM.items() if key in features)
    if found := re.fullmatch(r"aarch64-linux-android(\d+)", name):
        if int(found[1]) < ANDROID_API:
            raise ValueError(f"triple {name!r}: API levels from {ANDROID_API} on are supported")
        return Triple(name, name, "android", "shared", variants)
    if found := re.fullmatch(r"arm64-apple-ios(\d+\.\d+)", name):
        if float(found[1]) < IOS_VERSION:
            raise ValueError(f"triple {name!r}: iOS {IOS_VERSION} and later are supported")
        return Triple(name, name, "ios", "archive", variants)
    if name == "aarch64-linux-gnu":
        return Triple(name, "aarch64-unknown-linux-gnu", "linux", "shared", variants)
    raise ValueError(
        f"triple {name!r} is not known; aarch64-linux-android<API>, arm64-apple-ios<version> and aarch64-linux-gnu are"
    )
