"""`edgewright init`: a recipe for one's own checkpoint that fits phones, or what would.

What lives here: what a user gives, files, and what is said. What must not: choosing (`init_choice.py`) and the recipe's
text (`init_recipe.py`). Like `cli.py`, loads nothing but the standard library until the command runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, output

if TYPE_CHECKING:
    from edgewright.init_choice import Choice, Phone, Planner
    from edgewright.init_source import Source

_NAMED = 3  # others that would fit, of each kind


def declare(commands: Any) -> None:
    """Add it to the command line."""
    made = command(commands, "init", run, "write a recipe for one's own checkpoint that fits phones")
    made.description = (
        "Write a commented recipe with the most bits and the smallest groups that fit the phones, planned from the "
        "checkpoint's config.json alone; or say what would fit."
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder with config.json, or OWNER/NAME on the Hub")
    made.add_argument(
        "--phone", action="append", required=True, metavar="NAME", help="phone profile or YAML file that it has to fit"
    )
    made.add_argument("--target", action="append", default=[], metavar="NAME", help="runtime (default: one that fits)")
    made.add_argument("--context", type=int, metavar="N", help="tokens of prompt and answer (default: 4096, or fewer)")
    made.add_argument("--out", metavar="FILE", help="the recipe's file (default: NAME-int8.yaml or NAME-int4.yaml)")
    made.add_argument("--force", action="store_true", help="overwrite a file that is there")
    output(made)


def run(args: argparse.Namespace) -> int:
    """The command line's `init`. Raises EdgewrightError."""
    from artifacts import EdgewrightError, user_path
    from compiler.targets import target_options
    from edgewright import init_source
    from edgewright.init_choice import Planner
    from recipes.errors import nearest

    phones = _phones(args.phone)
    for target in args.target:
        if target not in target_options():
            raise EdgewrightError(f"there is no target {target!r}{nearest(target, target_options())}")
    source = init_source.find(args.checkpoint)
    name = re.sub(r"[^a-z0-9._-]+", "-", source.name.lower()).strip("-._")[:80] or "model"
    file = user_path(args.out, "--out").absolute() if args.out else None
    if file is not None and file.suffix not in (".yaml", ".yml"):
        raise EdgewrightError(f"--out: {args.out}: a recipe's file ends in .yaml")
    planner = Planner(name, _checkpoint(source, name, file or Path.cwd() / "x.yaml"), source.config, args.target)
    found = planner.first(phones, args.context)
    if found is None:
        advice = list(_advice(planner, phones, args.context))
        if args.json:
            streams.write_json({"recipe": None, "reasons": advice})
        else:
            streams.write_lines("\n".join(advice))
        return 1
    file = file or Path.cwd() / f"{found.document['name']}.yaml"
    fits = _write(file, found, planner, phones, source, args)
    shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
    if args.json:
        fitting = [item.to_json() for item in fits]
        streams.write_json({"recipe": str(file), "document": found.document, "fits": fitting})
        return 0
    from edgewright.init_recipe import least, named

    streams.write_lines(f"{shown}: {named(found.scheme)}, {', '.join(found.targets)}")
    if found.shape.blind:
        streams.write("  its text side alone: with its eyes nothing fits\n")
    for phone in phones:
        for item in found.plans:
            if item.target in found.targets and phone.profile.platform in item.app_bytes:
                streams.write_lines(f"  {phone.name}: {item.target} needs at least {least(item, phone)}")
    streams.write(streams.plain(f"next:\n  edgewright plan {shown}\n  edgewright run {shown}\n"))
    return 0


def _phones(names: Sequence[str]) -> list[Phone]:
    from artifacts import user_path
    from device_farm import load_profile
    from edgewright.init_choice import Phone

    found = []
    for name in dict.fromkeys(names):
        user_path(name, "--phone")
        own = name.endswith((".yaml", ".yml"))
        found.append(Phone(str(Path(name).absolute()) if own else name, load_profile(name)))
    return found


def _checkpoint(source: Source, name: str, file: Path) -> dict[str, Any]:
    """The recipe's section; a folder below the recipe's own is named from there."""
    if source.hub is not None:
        return {"hub": source.hub, "revision": source.revision, "config": f"{name}.config.json"}
    assert source.folder is not None
    beside = source.folder.is_relative_to(file.parent.resolve())
    return {"path": str(source.folder.relative_to(file.parent.resolve()) if beside else source.folder)}


def _write(
    file: Path, found: Choice, planner: Planner, phones: Sequence[Phone], source: Source, args: argparse.Namespace
) -> list[Any]:
    from artifacts import EdgewrightError
    from edgewright import api
    from edgewright.fit import fits
    from edgewright.init_recipe import written
    from edgewright.report import write
    from runtime_tests.validate import Limits

    recipe = api.recipe_type().model_validate(found.document)
    chosen = [item for item in found.plans if item.target in found.targets]
    judged = fits(recipe, source.config, chosen, [(phone.profile, Limits()) for phone in phones])
    files = {file: written(found, planner, phones, judged, args.checkpoint, file.name)}
    if source.hub is not None:
        config = file.parent / found.document["checkpoint"]["config"]
        files[config] = json.dumps(source.config, indent=2, ensure_ascii=False) + "\n"
    for path, content in files.items():
        if os.path.lexists(path) and not args.force and not (path != file and _holds(path, content)):
            raise EdgewrightError(f"{path}: is there already; --force overwrites it, --out FILE takes another place")
        if not path.parent.is_dir():
            raise EdgewrightError(f"{path.parent}: no such folder; make it, or give --out another place")
    for path, content in reversed(files.items()):  # the config first: a recipe is there when all of it is
        write(path.parent, path.name, content)
    return api.plan_fits(file)


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == content
    except (OSError, ValueError):
        return False


def _advice(planner: Planner, phones: Sequence[Phone], context: int | None) -> Iterator[str]:
    """Why nothing fits, and what would: a smaller context, another phone, another runtime, another checkpoint."""
    from edgewright.init_choice import CONTEXTS, Planner
    from edgewright.init_recipe import named

    shape = planner.shapes(context)[-1]
    smallest = planner.at(planner.schemes()[-1], shape)
    seen = f" and {shape.context:,} tokens of context" if planner.positions else ""
    yield f"nothing fits {', '.join(phone.name for phone in phones)}, not even {named(smallest.scheme)}{seen}:"
    for phone in phones:
        there = [item for item in smallest.plans if phone.profile.platform in item.app_bytes]
        if not there:
            runs = ", ".join(item.target for item in smallest.plans)
            yield f"  {phone.name}: no package of {runs} runs on {phone.profile.platform}; leave --target out"
        for item in there:
            said = f"{item.target} refuses: {item.refused}" if item.refused else phone.lacks(item)
            yield f"  {said or f'{item.target} would fit {phone.name}'}"
    yield "what would fit, by the same estimate:"
    advised = False
    for fewer in (one for one in CONTEXTS if context and one < context):
        if planner.first(phones, fewer):
            yield f"  a smaller context: --context {fewer}"
            advised = True
            break
    if planner.asked and Planner(planner.name, planner.checkpoint, planner.config, ()).first(phones, context):
        yield "  another runtime: leave --target out"
        advised = True
    if others := _other_phones(planner, phones, context):
        yield f"  another phone: {', '.join(others)}"
        advised = True
    if recipes := _other_recipes(phones, planner):
        yield f"  another checkpoint, of recipes that ship: {', '.join(recipes)}"
        advised = True
    if not advised:
        yield "  nothing of what ships; a checkpoint with fewer parameters, or a phone profile of one's own"


def _other_phones(planner: Planner, phones: Sequence[Phone], context: int | None) -> list[str]:
    """Phones of the same platforms on which it would fit, the smallest first."""
    from device_farm import list_profiles, load_profile
    from edgewright.init_choice import Phone

    platforms = {phone.profile.platform for phone in phones}
    known = sorted(map(load_profile, list_profiles()), key=lambda profile: profile.ram_bytes.value)
    wanted = [Phone(one.name, one) for one in known if one.platform in platforms]
    shape, scheme = planner.shapes(context)[-1], planner.schemes()[-1]
    found = planner.at(scheme, shape)
    return [phone.name for phone in wanted if planner.fitting(found, [phone])][:_NAMED]


def _other_recipes(phones: Sequence[Phone], planner: Planner) -> list[str]:
    """Recipes for checkpoints of the Hub that could be had for all of the phones, those that lose least first."""
    from artifacts.documents import read_json
    from edgewright import api
    from edgewright.init_choice import Planner
    from recipes.load import shipped

    found: dict[str, str] = {}
    for name, path in shipped().items():
        wanted = api.load_recipe(path).checkpoint
        if wanted.hub is None or wanted.config is None or wanted.hub in found:
            continue
        other = Planner(name, {"hub": wanted.hub}, read_json(path.parent / wanted.config), ())
        if other.config != planner.config and other.first(phones, None):
            found[wanted.hub] = name
    return list(found)[:_NAMED]
