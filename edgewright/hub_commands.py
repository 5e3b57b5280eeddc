"""The commands `publish` and `pull`: their arguments, and what they show.

Like `cli.py`, loads nothing but the standard library until a command runs.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, output

if TYPE_CHECKING:
    from pathlib import Path

    from edgewright.hub.signatures import Signer, Trusted


def declare(commands: Any) -> None:
    """Add both to the command line."""
    _publish_arguments(command(commands, "publish", publish, "put packages that passed on the Hub, in one commit"))
    _pull_arguments(command(commands, "pull", pull, "fetch the package that passed on a phone, and check every byte"))


def _publish_arguments(made: argparse.ArgumentParser) -> None:
    made.epilog = (
        "Everything goes up in one commit, which is compared with the artifacts' digests and then tagged: whoever "
        "downloads by the tag sees all or nothing. What the Hub has already is not sent again. The token is that of "
        "`hf auth login`, or HF_TOKEN."
    )
    made.add_argument("artifact", nargs="+", metavar="ARTIFACT", help="folder of a package; all of one recipe")
    made.add_argument("--repo", metavar="OWNER/NAME", help="repository, made if there is none")
    made.add_argument(
        "--recipe", metavar="NAME|PATH", help="recipe whose section `publish` names the repository and what it accepts"
    )
    made.add_argument("--public", action="store_true", help="everybody may see it (default: private)")
    made.add_argument("--tag", metavar="NAME", help="tag of the commit (default: from the content)")
    made.add_argument(
        "--allow-failed", action="store_true", help="publish what did not pass too; its card and the index say so"
    )
    signing = made.add_mutually_exclusive_group()
    signing.add_argument("--sign-key", metavar="FILE", help="sign packages and card with this private key (EC, PEM)")
    signing.add_argument("--sign-keyless", action="store_true", help="sign with the identity of the CI job (sigstore)")
    _sigstore_argument(made)
    output(made)


def _pull_arguments(made: argparse.ArgumentParser) -> None:
    made.epilog = (
        "Of the packages that passed on the phone the smallest is fetched, with the repository's root files, and put "
        "in DIR/<package> when every byte was found right. After an interruption the next call goes on from there."
    )
    made.add_argument("repo", metavar="REPO", help="OWNER/NAME of a repository that `edgewright publish` wrote")
    made.add_argument("--profile", required=True, metavar="NAME", help="phone, as `edgewright profiles list` has it")
    made.add_argument("--revision", metavar="REV", help="tag, branch or commit (default: the newest commit)")
    made.add_argument("--out", required=True, metavar="DIR", help="where the package and the root files land")
    trusted_arguments(made)
    output(made)


def trusted_arguments(made: argparse.ArgumentParser) -> None:
    """Whose signature has to be there."""
    made.add_argument("--public-key", metavar="FILE", help="require a signature by the private key to this one (PEM)")
    made.add_argument("--signed-by", metavar="IDENTITY", help="require a keyless signature of this identity")
    made.add_argument("--issuer", metavar="URL", help="who vouches for the identity of --signed-by")
    _sigstore_argument(made)


def _sigstore_argument(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--sigstore",
        default="production",
        metavar="WHICH",
        help="of a keyless signature: production, whose log is public and for good (default), staging for trials, or "
        "the file of another's client trust configuration",
    )


def _sigstore(args: argparse.Namespace) -> str | Path:
    from artifacts import user_path
    from edgewright.hub.signatures import PRODUCTION, STAGING

    return args.sigstore if args.sigstore in (PRODUCTION, STAGING) else user_path(args.sigstore, "--sigstore")


def trusted(args: argparse.Namespace) -> Trusted | None:
    """Whose signature is required; None: nobody's. Raises EdgewrightError."""
    if not (args.public_key or args.signed_by or args.issuer):
        return None
    from artifacts import EdgewrightError, user_path
    from edgewright.hub.signatures import Trusted

    if bool(args.signed_by) != bool(args.issuer) or bool(args.public_key) == bool(args.signed_by):
        raise EdgewrightError("give --public-key FILE, or --signed-by IDENTITY and --issuer URL")
    key = user_path(args.public_key, "--public-key") if args.public_key else None
    return Trusted(key, args.signed_by, args.issuer, _sigstore(args))


def _signer(args: argparse.Namespace) -> Signer | None:
    if not (args.sign_key or args.sign_keyless):
        return None
    from artifacts import user_path
    from edgewright.hub.signatures import Signer

    return Signer(user_path(args.sign_key, "--sign-key") if args.sign_key else None, _sigstore(args))


def publish(args: argparse.Namespace) -> int:
    """Run `edgewright publish`."""
    from dataclasses import asdict

    from artifacts import EdgewrightError
    from edgewright import bars
    from edgewright.hub.publish import publish

    section = None
    if args.recipe is not None:
        from edgewright import api

        section = api.load_recipe(args.recipe).publish
    repo = args.repo or (section and section.repo)
    if not repo:
        where = f"{args.recipe} has no section `publish`" if args.recipe else "no repository is named"
        raise EdgewrightError(f"{where}; give --repo OWNER/NAME, or a --recipe with `publish: {{repo: owner/name}}`")
    private = not args.public and (section is None or section.private)
    with bars.progress(shown=not args.json) as progress:
        found = publish(
            args.artifact,
            repo,
            private=private,
            tag=args.tag,
            licence=section.accept_licence if section else None,
            allow_failed=args.allow_failed,
            signer=_signer(args),
            progress=progress,
        )
    if args.json:
        streams.write_json(asdict(found))
        return 0
    from edgewright import render

    if not found.sent and not found.removed:
        streams.write(f"{found.repo}: unchanged, no file was sent\n")
    else:
        count = f"{len(found.sent)} file" + ("" if len(found.sent) == 1 else "s")
        streams.write_lines(f"{found.repo}: {count} sent{_removed(found.removed)}, all digests compared")
    for name in found.variants:
        streams.write(f"  {name}\n")
    seen = "private" if found.private else "public"
    streams.write(f"{found.url} ({seen})\ntag {found.tag}, commit {found.commit}\n")
    render.show_warnings(found.warnings)
    return 0


def pull(args: argparse.Namespace) -> int:
    """Run `edgewright pull`."""
    from dataclasses import asdict

    from edgewright import bars
    from edgewright.hub.pull import pull
    from edgewright.text import size

    with bars.progress(shown=not args.json) as progress:
        found = pull(
            args.repo, args.profile, args.out, revision=args.revision, trusted=trusted(args), progress=progress
        )
    if args.json:
        streams.write_json(asdict(found))
        return 0
    how = f"{size(found.received_bytes)} received" if found.received_bytes else "was there already"
    streams.write_lines(
        f"{found.variant} passed on {found.profile}: {size(found.bytes)}, {how}, every byte checked\n"
        f"{found.folder}\ncommit {found.commit} of {found.repo}"
    )
    return 0


def _removed(paths: tuple[str, ...]) -> str:
    folders = sorted({path.partition("/")[0] for path in paths})
    return f", earlier files of {', '.join(folders)} removed" if folders else ""
