"""`edgewright latency`: how fast a decoder of any geometry is on a phone, by `device_farm/latency.py`.

Like `cli.py`, loads nothing but the standard library until the command runs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from edgewright import streams

_NEEDED = ("layers", "heads", "kv-heads", "head-dim", "hidden", "intermediate", "vocab")
_MORE = {
    "weights": "multiply-adds of a token in all layers, where these are not plain (default: counted)",
    "full-layers": "layers that look at the whole context (default: all)",
    "full-head-dim": "their head_dim, where it is another",
    "window-layers": "layers that look at a window",
    "window": "its positions",
}


def arguments(command: argparse.ArgumentParser) -> None:
    """What `edgewright latency` takes."""
    command.add_argument("phone", metavar="PHONE", help='words that name a phone or its chip, as in "Galaxy S23"')
    for name in _NEEDED:
        command.add_argument(f"--{name}", type=int, required=True, metavar="N", help="of the model's config.json")
    for name, text in _MORE.items():
        command.add_argument(f"--{name}", type=int, metavar="N", help=text)
    command.add_argument("--layer-cost", type=float, metavar="X", help="operators of a layer beside a plain one's")
    command.add_argument("--kernel", default="q4_0", metavar="NAME", help="llama.cpp's quantization (default: q4_0)")
    command.add_argument("--context", type=int, default=512, metavar="N", help="tokens that are there (default: 512)")
    command.add_argument(
        "--runtime", metavar="NAME", help="whose coefficients (default: the phone's, else PocketPal's)"
    )


def run(args: argparse.Namespace) -> int:
    """The command line's `latency`. Raises EdgewrightError."""
    from artifacts import EdgewrightError
    from device_farm.latency import predict
    from device_farm.latency_model import Geometry
    from edgewright import text

    names = [name.replace("-", "_") for name in (*_NEEDED, *_MORE, "layer-cost")]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for name, value in {**given, "context": args.context}.items():
        if value <= 0:
            raise EdgewrightError(f"--{name.replace('_', '-')}: must be above 0, not {value}")
    try:
        found = predict(Geometry(**given), args.phone, kernel=args.kernel, context=args.context, runtime=args.runtime)
    except ValueError as error:
        raise EdgewrightError(f"--runtime: {error}") from error
    if args.json:
        answers = {
            name: {"reason": item} if isinstance(item, str) else {**asdict(item), "obtained": "modelled"}
            for name, item in found.items()
        }
        streams.write_json({"phone": args.phone, "figures": answers})
        return 0
    for name, item in found.items():
        word = name.replace("_", " ")
        if isinstance(item, str):
            streams.write_lines(f"{word:17} {item}")
        else:
            shown = text.banded(item.value, item.band, item.unit)
            streams.write_lines(f"{word:17} {shown} at {item.at}; {item.runtime}, {item.basis}")
    return 0
