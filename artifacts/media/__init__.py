"""Images, clips, prompts and sound on their way into a model: read as untrusted files, cut into tiles and windows.

What lives here: doing what a `formats.preprocessing` description says, as an app has to do it by the page
`PREPROCESSING.md`: pixels equal to the processors of transformers; and what constants of `formats.talking_head` say, by
the page `TALKING_HEAD.md`. What must not: what the numbers are for a model, tokenizers, and anything that runs one.
Pillow and numpy are all that it needs; PyAV for clips in a file.
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).with_name("PREPROCESSING.md")
"""What an app developer follows; a copy lies in every artifact that has a `preprocessing.json`."""
TALKING_HEAD = PAGE.with_name("TALKING_HEAD.md")
"""The same for artifacts whose driver is `talking_head`."""
