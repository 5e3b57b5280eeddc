"""`optimum-cli edgewright run|plan|validate`: the same commands for those who know that door.

Installed as `optimum/commands/register/edgewright.py`, in which optimum looks for commands; there must be no
`__init__.py` beside it. It is loaded whenever optimum-cli starts: nothing but the standard library comes with it.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from edgewright import cli, run_command


class _Run(BaseOptimumCLICommand):  # type: ignore[misc]
    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Ours."""
        run_command.arguments(parser)

    def run(self) -> None:
        """Exits."""
        cli.perform(run_command.run, self.args)


class _Plan(BaseOptimumCLICommand):  # type: ignore[misc]
    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Ours."""
        cli.plan_arguments(parser)

    def run(self) -> None:
        """Exits."""
        cli.perform(cli.plan, self.args)


class _Validate(BaseOptimumCLICommand):  # type: ignore[misc]
    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Ours."""
        cli.validate_arguments(parser)

    def run(self) -> None:
        """Exits."""
        cli.perform(cli.validate, self.args)


class _Edgewright(BaseOptimumCLICommand):  # type: ignore[misc]
    COMMAND = CommandInfo("edgewright", "Packages for phones from one recipe, proven under phone memory limits.")
    SUBCOMMANDS = (
        CommandInfo("run", "Build and validate everything that recipes ask for.", _Run),
        CommandInfo("plan", "Estimate size and memory from the checkpoint's config alone.", _Plan),
        CommandInfo("validate", "Test an artifact in its real runtime, and on phones.", _Validate),
    )


REGISTER_COMMANDS = [_Edgewright]
