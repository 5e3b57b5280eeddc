"""bom.cdx.json: what a publication was made of, as a CycloneDX bill of materials (an ML-BOM).

The base model with its commit and the digests that were read, the data that was looked at, the tools, and each package
with the digest of its manifest. It has no time and no random number: the same packages give the same file.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from artifacts.manifest import CheckpointEntry
from compiler.quantize import evidence
from edgewright.hub.page import Package

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

BOM = "bom.cdx.json"


def bill(packages: Sequence[Package], repo: str) -> bytes:
    """The file's content. packages: all made from one checkpoint."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.bom_ref import BomRef
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    checkpoint = packages[0].manifest.checkpoint
    seed = json.dumps([repo, *(package.variant.manifest.sha256 for package in packages)])
    root = Component(name=repo, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=BomRef("publication"))
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, seed), metadata=BomMetaData(component=root))
    tools = {item for package in packages for item in package.manifest.created_by.items()}
    data = {said for package in packages if (said := _calibration(package)) is not None}
    made = [_package(package) for package in packages]
    used = [_base(checkpoint), *(_data(said) for said in sorted(data)), *(_tool(*item) for item in sorted(tools))]
    bom.components.update([*made, *used])
    bom.register_dependency(root, made)
    for component in made:
        bom.register_dependency(component, used)
    found = json.loads(JsonV1Dot6(bom).output_as_string())
    found["metadata"].pop("timestamp", None)  # the library writes one unasked
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def _base(checkpoint: CheckpointEntry) -> Component:
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    owner, _, name = checkpoint.source.rpartition("/")
    purl = PackageURL("huggingface", owner, name, checkpoint.revision) if checkpoint.revision else None
    return Component(
        name=checkpoint.source,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model",
        version=checkpoint.revision,
        purl=purl,
        licenses=[LicenseFactory().make_from_string(checkpoint.license)] if checkpoint.license else None,
        properties=[Property(name=f"edgewright:sha256:{file.path}", value=file.sha256) for file in checkpoint.files],
    )


def _package(package: Package) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    entry, manifest = package.variant, package.manifest
    return Component(
        name=entry.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"package/{entry.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.manifest.sha256)],
        properties=[
            Property(name="edgewright:target", value=entry.target),
            Property(name="edgewright:recipe", value=manifest.recipe.digest),
            Property(name="edgewright:weights", value=manifest.weights_digest),
            Property(name="edgewright:verdict", value=entry.verdict),
        ],
    )


def _data(said: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=said, type=ComponentType.DATA, bom_ref=f"data/{said}", description="looked at to quantize")


def _tool(name: str, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = None if name == "python" else PackageURL("pypi", None, name, version)
    kind = ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY
    return Component(name=name, type=kind, bom_ref=f"tool/{name}@{version}", version=version, purl=purl)


def _calibration(package: Package) -> str | None:
    if all(file.path != evidence.FILE for file in package.manifest.files):
        return None
    return evidence.read(package.folder, package.manifest).calibration
