"""Packages to the Hub: everything in one commit, compared with what was sent, then a tag on that very commit.

What lives here: the order of things. What must not: what a publication consists of (`bundle.py`), and how one call is
made (`client.py`).

Whoever downloads by the tag sees all or nothing: it is made last, of a commit that was found to hold every digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import EdgewrightError, Progress, silent
from edgewright.hub.bundle import Bundle, Sent, bundle
from edgewright.hub.client import Repository
from edgewright.hub.index import INDEX, MAX_INDEX_BYTES, Index, read_index
from edgewright.hub.lock import LockedFile
from edgewright.hub.receive import Words, content, explained
from edgewright.hub.wire import Hub
from recipes.words import check_hub_id

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ANYWAY = ".gitattributes"  # the Hub's own
_TOGETHER_BYTES = 8 << 20  # smaller files go up in one request


@dataclass(frozen=True)
class Published:
    """What a repository holds now. `sent`: paths that this publication changed, `removed`: those that it took away."""

    repo: str
    url: str
    commit: str
    tag: str
    private: bool
    variants: tuple[str, ...]
    sent: tuple[str, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]


def publish(
    artifacts: Sequence[str | Path],
    repo: str,
    *,
    private: bool = True,
    tag: str | None = None,
    allow_failed: bool = False,
    progress: Progress = silent,
) -> Published:
    """Publish artifacts of one recipe to `repo` (`owner/name`), each as a folder, in one commit with a tag.

    The repository is made if there is none. `tag` None: `edgewright-` and the first digits of the publication's digest.
    What the repository holds already is not sent; what an earlier publication left and this one replaces is removed.

    Raises:
        EdgewrightError: an artifact that cannot be published (see `bundle`), a repository that holds something else or
            that others can see although `private`, a tag that is taken, no right to write, or a Hub that fails.
        GateFailed: an artifact that did not pass, unless `allow_failed`.
    """
    _check_names(repo, tag)
    made = bundle(artifacts, repo, allow_failed=allow_failed, progress=progress)
    tag = tag or f"edgewright-{made.digest[:12]}"
    hub = Repository(repo)
    head = hub.head()
    if head is None:
        hub.create(private=private)
        head = hub.head()
    if head is None:
        raise EdgewrightError(f"{repo}: the Hub made no repository that the token may see; check its rights")
    if private and not head.private:
        raise EdgewrightError(
            f"{repo}: everybody can see this repository, and a publication is private unless --public is given"
        )
    before = hub.tree(head.commit)
    removed = _replaced(repo, head.commit, before, made)
    kept = before.keys() - removed - made.files.keys()
    _check_cases(repo, kept, made)
    tagged = hub.tags().get(tag)
    if tagged is not None and _missing(made, hub.tree(tagged)):
        raise EdgewrightError(f"{repo}: has a tag {tag} already, of something else; give another --tag")
    changed = [file for path, file in made.files.items() if not _same(file, before.get(path))]
    commit = head.commit
    if changed or removed:
        commit = _commit(hub, made, changed, removed, kept, commit, progress)
    _confirm(hub, repo, made, kept, commit, tag, tagged is None)
    return Published(
        repo=repo,
        url=hub.url,
        commit=commit,
        tag=tag,
        private=head.private,
        variants=tuple(variant.name for variant in made.index.variants),
        sent=tuple(file.path for file in changed),
        removed=tuple(sorted(removed)),
        warnings=made.warnings,
    )


def _check_names(repo: str, tag: str | None) -> None:
    try:
        check_hub_id(repo)
    except ValueError as error:
        raise EdgewrightError(f"--repo: {error}") from error
    if tag is not None and (not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock"))):
        raise EdgewrightError(f"--tag: {tag[:96]!r} is no name for a tag; letters, digits, '.', '_' and '-'")


def _replaced(repo: str, commit: str, before: Mapping[str, RepoFile], made: Bundle) -> set[str]:
    """What earlier publications left that is no part of this one. EdgewrightError where somebody else's files lie."""
    if INDEX not in before:
        if foreign := sorted(before.keys() - {_ANYWAY}):
            raise EdgewrightError(
                f"{repo}: holds other files ({_listed(foreign)}) and no {INDEX}: it is not one that Edgewright "
                "published to; publish to a repository of its own"
            )
        return set()
    earlier = _earlier(repo, commit, before[INDEX])
    if earlier.recipe != made.index.recipe:
        raise EdgewrightError(
            f"{repo}: holds packages of the recipe {earlier.recipe!r}, these are of {made.index.recipe!r}; publish to "
            "a repository of its own"
        )
    folders = {variant.name: variant.target for variant in earlier.variants}
    left = {path for path in before.keys() - made.files.keys() if path.partition("/")[0] in folders and "/" in path}
    lost = {folders[path.partition("/")[0]] for path in left} - {variant.target for variant in made.index.variants}
    if lost:
        raise EdgewrightError(
            f"{repo}: holds packages for {', '.join(sorted(lost))} too, which would be gone; name all artifacts of the "
            "recipe, or delete those folders on the Hub first"
        )
    return left


def _earlier(repo: str, commit: str, file: RepoFile) -> Index:
    if file.size > MAX_INDEX_BYTES:
        raise EdgewrightError(f"{repo}: its {INDEX} has {file.size:,} bytes, which none has")
    digest = {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
    wanted = LockedFile(path=INDEX, size=file.size, **digest)
    with explained(repo, commit, Words("check --repo", "--repo", "", "memory")):
        return read_index(content(Hub(), repo, commit, wanted), f"{repo}/{INDEX}")


def _check_cases(repo: str, kept: Iterable[str], made: Bundle) -> None:
    """Names that are one on the disks of phones and Macs cannot lie side by side."""
    ours = {path.casefold(): path for path in made.files}
    for path in kept:
        if path.casefold() in ours:
            raise EdgewrightError(f"{repo}: holds {path}, which differs from {ours[path.casefold()]} only in case")
    folders = {path.partition("/")[0] for path in made.files if "/" in path}
    for path in kept:
        top = path.partition("/")[0]
        if top.casefold() in {name.casefold() for name in folders}:
            raise EdgewrightError(f"{repo}: holds {path}, where a package goes; delete it on the Hub first")


def _commit(
    hub: Repository,
    made: Bundle,
    changed: Sequence[Sent],
    removed: Iterable[str],
    kept: Iterable[str],
    parent: str,
    progress: Progress,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(file.path, file.source) for file in changed]
    small = [add for file, add in zip(changed, additions, strict=True) if file.size < _TOGETHER_BYTES]
    parts = [small] if small else []
    parts += [[add] for file, add in zip(changed, additions, strict=True) if file.size >= _TOGETHER_BYTES]
    total, done = sum(file.size for file in changed), 0
    for part in parts:
        hub.upload(part)
        done += sum(add.upload_info.size for add in part)
        progress("uploading", done, total)
    message = f"{made.index.recipe}: {', '.join(variant.name for variant in made.index.variants)}"
    return hub.commit(
        [*additions, *(CommitOperationDelete(path, is_folder=False) for path in sorted(removed))],
        message,
        parent,
        lambda head: not _differences(made, hub.tree(head), kept),
    )


def _confirm(
    hub: Repository, repo: str, made: Bundle, kept: Iterable[str], commit: str, tag: str, is_new: bool
) -> None:
    """Compare the commit with what was sent, tag it, and look where the tag points."""
    if wrong := _differences(made, hub.tree(commit), kept):
        raise EdgewrightError(
            f"{repo}: the Hub holds something else than what was sent ({_listed(wrong)}), so commit {commit} was not "
            "tagged; run again"
        )
    if not is_new:
        return
    hub.tag(tag, commit)
    if (found := hub.tags().get(tag)) != commit:
        raise EdgewrightError(f"{repo}: the tag {tag} points at {found}, not at commit {commit}; give another --tag")


def _differences(made: Bundle, found: Mapping[str, RepoFile], kept: Iterable[str]) -> list[str]:
    """Paths at which a tree is not the publication and what lay beside it."""
    return sorted([*_missing(made, found), *(found.keys() - made.files.keys() - {_ANYWAY, *kept})])


def _missing(made: Bundle, found: Mapping[str, RepoFile]) -> list[str]:
    """Paths of the publication that a tree does not have, or has with other bytes."""
    return [path for path, file in made.files.items() if not _same(file, found.get(path))]


def _same(file: Sent, found: RepoFile | None) -> bool:
    if found is None or found.size != file.size:
        return False
    return found.lfs.sha256 == file.sha256 if found.lfs else found.blob_id == file.git_sha1


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
