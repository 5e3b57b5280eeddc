"""A checkpoint's chat template: of a conversation it makes the text that its model was trained on, as transformers.

What lives here: finding the template and rendering it, without transformers, whose modules a process that talks does
not need. What must not: tokens, and whose turn it is (`conversation.py`). A template is somebody else's program: it
runs in Jinja's sandbox, over plain values.

Source: transformers 5.23, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError
from artifacts.documents import parse_json, read_bytes

TEMPLATE, TEMPLATE_JSON, CONFIG, SPECIAL = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

Message = Mapping[str, Any]


class Template:
    """The chat template of an artifact, and what it sees of the tokenizer."""

    def __init__(self, source: str, where: str, special: Mapping[str, str]) -> None:
        """where: what messages call it. Raises EdgewrightError for one that Jinja cannot read."""
        import jinja2

        self._where, self._special = where, dict(special)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise EdgewrightError(f"{where}: is no template that Jinja can read: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text up to where the model's answer begins. Raises EdgewrightError where the template refuses."""
        import jinja2

        known = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text: str = self._template.render(**{**self._special, **known})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise EdgewrightError(f"{self._where}: does not take this conversation: {error}") from error
        return text


def read_template(artifact: Path) -> Template | None:
    """The template that travels with an artifact; None without one. Raises EdgewrightError naming the file."""
    config = _object(artifact / CONFIG)
    found: Any
    if (path := artifact / TEMPLATE).is_file():
        where, found = str(path), read_bytes(path, links=False).decode("utf-8", "replace")
    else:
        places = ((artifact / TEMPLATE_JSON, _object(artifact / TEMPLATE_JSON)), (artifact / CONFIG, config))
        for path, document in places:
            where, found = f"{path}: chat_template", document.get("chat_template")
            if found is not None:
                break
    if isinstance(found, list):  # several by name
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if found is None:
        return None
    if not isinstance(found, str):
        raise EdgewrightError(f"{where}: is no text; build the artifact again")
    return Template(found, where, _texts(_object(artifact / SPECIAL)) | _texts(config))


def _texts(document: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a document by name."""
    named = {key: value for key, value in document.items() if key.endswith("_token")}
    plain = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in plain.items() if isinstance(value, str)}


def _object(path: Path) -> dict[str, Any]:
    return parse_json(read_bytes(path, links=False), str(path)) if path.is_file() else {}


def _environment() -> Any:
    """Jinja as transformers sets it up: what templates are written for."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant said, for training; here it is what it encloses."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own protocol

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda how: datetime.now().strftime(how)
    return made
