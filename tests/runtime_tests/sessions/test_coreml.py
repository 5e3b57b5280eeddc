"""The Core ML session: every entry by its ports, over states or explicit caches; what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts import EdgewrightError, read_manifest
from compiler.slots import Scheme
from compiler.targets.coreml.options import CoreMLOptions
from runtime_tests.drivers.text import Decoder
from runtime_tests.sessions import make_session
from runtime_tests.sessions.coreml import CoreMLSession
from tests.compiler.conftest import converting_here, packed, quantized_job
from tests.runtime_tests.conftest import MAX_TOKENS, VOCAB, write_checkpoint

EXECUTOR = "Core ML reference executor"
IDS = np.random.default_rng(3).integers(0, VOCAB, 100)


@pytest.fixture(scope="module", params=["state", "explicit"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CoreMLSession:
    """A loaded session over an INT4 package of the random checkpoint, in exact mode."""
    folder = tmp_path_factory.mktemp("coreml")
    source = folder / "checkpoint"
    source.mkdir()
    write_checkpoint(source)
    options = CoreMLOptions(cache=request.param)
    job = quantized_job(folder / "quantized", source, options, Scheme(4, 32), max_tokens=MAX_TOKENS)
    with converting_here():
        manifest = packed(job, "coreml", folder / "package")
    found = make_session(folder / "package", manifest)
    assert isinstance(found, CoreMLSession)
    found.load(exact=True)
    return found


def test_the_executor_stands_in_and_memory_is_modelled_for_the_whole_context(session: CoreMLSession) -> None:
    assert session.stand_in == EXECUTOR
    clean, *modelled = session.footprint()
    assert (clean.name, clean.obtained, clean.at) == ("weights_clean_mapped", "declared", None)
    assert [figure.name for figure in modelled] == [
        "modelled_footprint_decoder_prefill_256",
        "modelled_footprint_decoder_decode",
    ]
    assert {(figure.obtained, figure.at) for figure in modelled} == {("modelled", f"{MAX_TOKENS} tokens")}


def test_cached_decoding_equals_prefill_and_starts_from_zeros(session: CoreMLSession) -> None:
    decoder = Decoder(session, read_manifest(session.artifact).components[0], MAX_TOKENS)
    rows = [decoder.prefill(IDS[:90]), *(decoder.decode(int(token)) for token in IDS[90:])]
    logits = decoder.logits(IDS)
    assert logits.shape == (100, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(np.stack(rows), logits[89:], atol=1e-5 * np.ptp(logits))
    np.testing.assert_array_equal(decoder.prefill(IDS[:90]), rows[0])


def test_every_entry_is_called_by_its_ports(session: CoreMLSession) -> None:
    given = {"input_ids": IDS[None, :16], "positions": np.arange(16)[None]}
    session.reset()
    assert session.call("decoder", "prefill", **given)["logits"].shape == (1, 1, VOCAB)
    assert session.call("decoder", "score", **given)["logits"].shape == (1, 16, VOCAB)
    for component, entry, changes, message in (
        ("decoder", "encode", {}, "has no decoder.encode"),
        ("encoder", "prefill", {}, "has no encoder.prefill"),
        ("decoder", "decode", {}, "decoder.decode: tokens is 16; it takes 1 to 1"),
        ("decoder", "prefill", {"positions": np.arange(4)[None]}, r"positions is int64 \[1, 4\], not int64"),
        ("decoder", "prefill", {"input_ids": IDS[None, :16].astype(np.int32)}, r"input_ids is int32 \[1, 16\]"),
        ("decoder", "prefill", {"mask": IDS}, "decoder.prefill takes input_ids, positions, not input_ids, mask"),
    ):
        with pytest.raises(EdgewrightError, match=message):
            session.call(component, entry, **given | changes)
    five = {"input_ids": IDS[None, :5], "positions": np.arange(5)[None]}
    with pytest.raises(EdgewrightError, match=r"decoder\.prefill: tokens is 5; it takes 16, 64, 256"):
        session.call("decoder", "prefill", **five)
