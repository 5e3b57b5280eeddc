"""Documents that others wrote: what is sound is read, and nothing hangs, fills memory or recurses over the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.documents import MAX_DEPTH, DocumentError, parse_json, read_bytes, read_json

Maker = Callable[[Path], object]


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ä": [1, 2.5, null, true]}', encoding="utf-8")
    (tmp_path / "link.json").symlink_to("config.json")
    expected = {"ä": [1, 2.5, None, True]}
    assert read_json(tmp_path / "config.json") == read_json(tmp_path / "link.json") == expected


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a pipe, not a regular file"),
        (Path.mkdir, "a folder, not a regular file"),
        (lambda p: p.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda p: p.symlink_to("nowhere"), "No such file or directory"),
        (lambda p: p.symlink_to(p.name), "Too many levels of symbolic links"),
        (lambda p: None, "No such file or directory"),
    ],
)
def test_what_is_no_file_is_named_at_once(tmp_path: Path, make: Maker, reason: str) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(DocumentError, match=rf"config\.json: cannot be read: .*{reason}") as raised:
        read_json(tmp_path / "config.json")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "reason"), [("a\0b", "null"), ("x" * 300, "too long"), ("x/" * 5000, "too long"), ("\ud800", "surrogates")]
)
def test_names_that_no_file_can_have_are_an_error_like_any_other(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=rf"cannot be read: .*{reason}"):
        read_bytes(tmp_path / name)


def test_a_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 3000)
    assert read_bytes(file, 3000) == b"x" * 3000
    with pytest.raises(DocumentError, match="larger than 2,999 bytes"):
        read_bytes(file, 2999)
    os.truncate(file, 1 << 40)  # a hole of a terabyte: would fill memory
    with pytest.raises(DocumentError, match="larger than 16,777,216 bytes"):
        read_bytes(file)


NESTED = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"


def test_the_depth_is_bounded() -> None:
    assert parse_json(NESTED, "x")
    for deeper in (b'{"b": ' + NESTED + b"}", b"[" * 500 + b"]" * 500, b'{"a":' * 200_000, b'{"a": ' + b"[" * 900):
        with pytest.raises(DocumentError):
            parse_json(deeper, "x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff{}", "not valid JSON: 'utf-8'"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' is given twice"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
    ],
)
def test_json_that_readers_disagree_about_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=rf"^x\.json: .*{reason}"):
        parse_json(text, "x.json")


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == read_bytes(tmp_path / "file", links=False) == b"12345"
    with pytest.raises(DocumentError, match=f"{tmp_path}/link: cannot be read: it is a link, not a regular file"):
        read_bytes(tmp_path / "link", links=False)


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _TREES, max_size=5), st.booleans())
def test_everything_else_is_what_was_written(tree: dict[str, object], escaped: bool) -> None:
    assert parse_json(json.dumps(tree, ensure_ascii=escaped).encode(), "x") == tree


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_document_error(raw: bytes) -> None:
    try:
        assert isinstance(parse_json(raw, "x"), dict)
    except DocumentError as error:
        assert str(error).startswith("x: ")
