"""The command `edgewright`: arguments in, exit code out (`_EXIT_CODES` says which).

This module loads nothing but the standard library, so that `--help` answers at once; each command imports what it
needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from edgewright import (
    adoption,
    cache_commands,
    ci_commands,
    compare_command,
    completion,
    doctor,
    explain,
    farm_commands,
    hub_commands,
    init,
    rooms,
    run_command,
    signals,
    speed,
    streams,
    sweep_command,
    try_command,
)
from edgewright.arguments import Parser, command, group, output, recipe_arguments

if TYPE_CHECKING:
    from edgewright.report import RunVerdict

_EXAMPLES = """\
examples:
  edgewright run quickstart                 build and validate one that ships
  edgewright run my.yaml --checkpoint ./tuned    one's own, on one's fine-tune
  edgewright init ./tuned --phone iphone-12      a recipe of one's own that fits
  edgewright plan ministral-3-3b-int4       what it comes to, before a download
  edgewright validate build/quickstart/onnx --profile iphone-12
  edgewright try build/quickstart               talk to it
  edgewright compare build/quickstart build/quickstart-int8
  edgewright publish build/quickstart/onnx --repo me/quickstart-edge
"""
_EXIT_CODES = """\
exit codes:
  0    done, and no gate failed
  1    a gate failed, `verify` found another digest, `cache verify` damage, a
       figure is worse than its baseline allows, a target refuses the plan, or
       `init` found nothing that fits
  2    bad input, or a place (stdout too) that cannot be written
  3    a tool or optional package is missing
  70   a defect of Edgewright, with its traceback: please report it
  129, 130, 143   ended by SIGHUP, Ctrl-C, SIGTERM; 141: whoever read stdout
       closed it
"""


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="edgewright",
        description="Takes a model checkpoint to INT4/INT8 packages for phones, and proves they fit.",
        epilog=f"{_EXAMPLES}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    run_command.declare(commands)
    sweep_command.declare(commands)

    plan_arguments(command(commands, "plan", plan, "estimate size and memory from the checkpoint's config alone"))
    validate_arguments(command(commands, "validate", validate, "test an artifact in its real runtime, and on phones"))

    try_command.declare(commands)
    init.declare(commands)
    compare_command.declare(commands)

    inspect = command(commands, "inspect", _inspect, "show what an artifact is, and what its last validation found")
    inspect.add_argument("artifact", metavar="ARTIFACT", help="folder of the artifact")
    output(inspect)

    lost = command(commands, "quantize-report", _quantize_report, "show what quantization did, worst tensors first")
    lost.add_argument("artifact", metavar="ARTIFACT", help="folder of the artifact, or of its quantized weights")
    lost.add_argument("--worst", type=int, default=20, metavar="N", help="tensors to show (default: 20; 0: all)")
    output(lost)

    verify = command(commands, "verify", _verify, "recompute every digest of an artifact")
    verify.add_argument("artifact", metavar="ARTIFACT", help="folder of the artifact")
    hub_commands.trusted_arguments(verify)
    output(verify, quiet="show nothing when all is well, its last validation too")

    hub_commands.declare(commands)
    ci_commands.declare(commands)
    cache_commands.declare(commands)
    farm_commands.declare(commands)

    adopt = command(commands, "adopt", adoption.run, "make a checkpoint of a project's .pth files, norms folded")
    adoption.arguments(adopt)
    output(adopt)

    latency = command(commands, "latency", speed.run, "model how fast a decoder of any geometry is on a phone")
    speed.arguments(latency)
    output(latency)

    recipes = group(commands, "recipes", "list, show, schema: the recipes that ship and how to write one")
    output(command(recipes, "list", _recipes_list, "the recipes that ship"))
    show = command(recipes, "show", _recipes_show, "print a recipe's file, with paths that work from anywhere")
    show.add_argument("recipe", metavar="NAME|PATH")
    command(recipes, "schema", _recipes_schema, "print the JSON Schema of recipes, for editors")

    profiles = group(commands, "profiles", "list, show: the phones that are known")
    output(command(profiles, "list", _profiles_list, "the phone profiles that ship"))
    show = command(profiles, "show", _profiles_show, "print a profile, every number with its source")
    show.add_argument("profile", metavar="NAME|PATH")
    output(show)

    explain.declare(commands)
    completion.declare(commands, parser)
    doctor.declare(commands)
    return top


def plan_arguments(made: argparse.ArgumentParser) -> None:
    """All that `plan` takes."""
    recipe_arguments(made)
    made.add_argument("--profile", action="append", default=[], metavar="NAME", help="phone instead of the recipe's")
    output(made)


def validate_arguments(made: argparse.ArgumentParser) -> None:
    """All that `validate` takes."""
    made.add_argument("artifact", metavar="ARTIFACT", help="folder of the artifact")
    made.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="phone profile, YAML file, or all that ship: all"
    )
    made.add_argument(
        "--out", metavar="DIR", help="write report.html, the phones' matrix and memory over time (SVG) to DIR"
    )
    made.add_argument(
        "--arm64", action="store_true", help="also compare its answers on these phones' CPUs, emulated (see farm setup)"
    )
    made.add_argument("--device", metavar="SERIAL", help="also run it on this Android phone, through adb")
    output(made, quiet="show nothing but the verdict, warnings, and why it failed")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    _exit_with(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def perform(function: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> NoReturn:
    """Do one command whose arguments another program's command line has read, and exit."""
    _exit_with(lambda: _perform(function, args))


def _exit_with(work: Callable[[], int]) -> NoReturn:
    # Threads of PyTorch that spin while they wait tripled the processor time of a run beside other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    streams.prepare()
    try:
        try:
            with signals.raised():
                code = work()
        except SystemExit as ended:  # argparse, after its help or its error
            code = int(ended.code or 0)
        streams.write("")  # what argparse printed leaves here, or fails here
    except streams.OutputLost as error:
        code = _fail(error, error.exit_code)
    sys.exit(code)


def _main(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    if args.version:
        from edgewright import __version__

        streams.write(f"edgewright {__version__}\n")
        return 0
    if "function" not in args:
        parser().print_help()
        return 0
    return _perform(args.function, args)


def _perform(function: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        rooms.check()
        return function(args)
    except KeyboardInterrupt as ended:
        number = ended.number if isinstance(ended, signals.Ended) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        print(f"{how}; no half-written package is left, and the next run goes on from here", file=sys.stderr)
        return 128 + number
    except streams.OutputLost:
        raise
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            import traceback

            traceback.print_exc()
            error, code = RuntimeError(f"this is a defect of Edgewright, not of your input: {error!r}"), 70
        _fail(error, code)
        if getattr(args, "json", False):
            streams.write_json({"error": {"message": str(error), "exit_code": code}})
        return code


def _fail(error: Exception, code: int) -> int:
    if str(error):
        streams.say_error(str(error))
    return code


def plan(args: argparse.Namespace) -> int:
    """The command `plan`."""
    from edgewright import api, render

    recipe = api.load_recipe(args.recipe)
    plans = api.plan(recipe, targets=args.target, checkpoint=args.checkpoint)
    fits = api.plan_fits(recipe, targets=args.target, profiles=args.profile, checkpoint=args.checkpoint)
    warnings = api.plan_warnings(recipe, checkpoint=args.checkpoint)
    if args.json:
        streams.write_json(
            {
                "recipe": recipe.name,
                "targets": [item.to_json() for item in plans],
                "fits": [item.to_json() for item in fits],
                "warnings": warnings,
            }
        )
    else:
        render.show(render.plans(recipe, plans, fits))
        render.show_warnings(warnings)
    return 1 if any(item.refused for item in plans) or any(item.verdict == "does not fit" for item in fits) else 0


def validate(args: argparse.Namespace) -> int:
    """The command `validate`."""
    from artifacts import user_path
    from edgewright import api, bars, charts, matrix, phone_files, render

    folder = user_path(args.out, "--out") if args.out else None
    with bars.progress(shown=not (args.json or args.quiet)) as progress:
        report = api.validate(
            args.artifact, profiles=args.profile, arm64=args.arm64, device=args.device, progress=progress
        )
    if folder is not None:
        phone_files.write_files(folder, report)
        if (lacking := charts.missing()) is not None:
            print(f"warning: {lacking}", file=sys.stderr)
    if args.json:
        streams.write_json({**report.model_dump(mode="json"), "matrix": matrix.to_json(matrix.cells([report]))})
    elif args.quiet:
        render.show(render.verdict(report.verdict))
        render.show_reasons([report])
    else:
        render.show(render.target(report))
        if len(report.phones) > 1:
            render.show(render.matrix([report]))
        render.show(render.verdict(report.verdict))
    return _exit_code(report.verdict)


def _inspect(args: argparse.Namespace) -> int:
    from artifacts import read_manifest, user_path

    folder = user_path(args.artifact, "ARTIFACT")
    manifest = read_manifest(folder)
    if args.json:
        streams.write_json(manifest.model_dump(mode="json"))
    else:
        from edgewright import render

        render.show(render.manifest(manifest, folder))
    return 0


def _quantize_report(args: argparse.Namespace) -> int:
    from artifacts import user_path
    from compiler.quantize import evidence
    from edgewright import bars, render

    with bars.progress(shown=not args.json) as progress:
        found = evidence.report(user_path(args.artifact, "ARTIFACT"), progress)
    if args.json:
        streams.write_json(found.model_dump(mode="json"))
    else:
        render.show(render.quantization(found, args.worst or len(found.tensors)))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from artifacts import read_manifest, user_path, verify
    from edgewright import bars, render

    folder = user_path(args.artifact, "ARTIFACT")
    manifest = read_manifest(folder)
    with bars.progress(shown=not (args.json or args.quiet)) as progress:
        problems = verify(folder, progress)
    if not problems and (trusted := hub_commands.trusted(args)) is not None:
        from edgewright.hub.signatures import read_signature

        trusted.check(folder, read_signature(folder), str(folder))
    if args.json:
        streams.write_json(
            {
                "intact": not problems,
                "problems": [problem.model_dump() for problem in problems],
                "verdict": None if problems else manifest.verdict,
            }
        )
    elif problems or not args.quiet:
        render.show(render.problems(folder, problems, manifest))
    elif manifest.verdict != "passed":
        render.show(render.standing(manifest, folder))
    return 1 if problems else 0


def _recipes_list(args: argparse.Namespace) -> int:
    from edgewright import api
    from recipes.load import shipped

    found = [(name, api.load_recipe(path)) for name, path in shipped().items()]
    if args.json:
        streams.write_json(
            {"recipes": [{"name": name, **recipe.model_dump(mode="json", by_alias=True)} for name, recipe in found]}
        )
    else:
        from edgewright import render

        render.show(render.recipes(found))
    return 0


def _recipes_show(args: argparse.Namespace) -> int:
    from edgewright import api
    from edgewright.recipe_text import standalone

    recipe = api.load_recipe(args.recipe)
    assert recipe.origin is not None  # it was read from a file
    text = standalone(recipe.origin, recipe)
    streams.write(streams.plain(text) if sys.stdout.isatty() else text)
    return 0


def _recipes_schema(args: argparse.Namespace) -> int:
    from edgewright import api

    schema = api.recipe_type().model_json_schema()
    streams.write_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    return 0


def _profiles_list(args: argparse.Namespace) -> int:
    from device_farm import list_profiles, load_profile

    found = [load_profile(name) for name in list_profiles()]
    if args.json:
        streams.write_json({"profiles": [profile.model_dump(mode="json") for profile in found]})
    else:
        from edgewright import render

        render.show(render.profiles(found))
    return 0


def _profiles_show(args: argparse.Namespace) -> int:
    from artifacts import user_path
    from device_farm import load_profile

    user_path(args.profile, "PROFILE")
    profile = load_profile(args.profile).model_dump(mode="json")
    if args.json:
        streams.write_json(profile)
    else:
        import yaml

        streams.write(streams.plain(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True, width=64)))
    return 0


def _exit_code(verdict: RunVerdict) -> int:
    return 1 if verdict == "failed" else 0


if __name__ == "__main__":
    main()
