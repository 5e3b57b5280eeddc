"""`adopt`: from pickles in each published nesting to a folder that the compiler reads, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts import EdgewrightError
from compiler import dialect
from compiler.adopt.pickles import read_pickle
from compiler.checkpoint import Checkpoint
from compiler.licence import licence_of
from tests.compiler.adopt.conftest import Adopt, save_encoder, save_expression, save_unet
from tests.compiler.avatars import animated, flame, small_encoder, small_expression, small_unet
from tests.compiler.conftest import original


def error_of(folder: Path, modules: dict[str, torch.nn.Module]) -> float:
    """The largest difference of a folder's entries from the modules that it was made from, by component."""
    model, weights = original(folder)
    worst = 0.0
    for component in model.components:
        (entry,) = component.entries
        generator = torch.Generator().manual_seed(7)
        inputs = [torch.randn(port.sized({}), generator=generator) for port in entry.inputs]
        with torch.no_grad(), dialect.weights(weights):
            found = component.module(entry, {})(*inputs)[0]
            expected = modules[component.name](*inputs)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("mobileone", [False, True], ids=["original", "mobileone"])
def test_the_folder_computes_what_the_trained_modules_do(tmp_path: Path, take: Adopt, mobileone: bool) -> None:
    """With its batch norms and branches folded."""
    unet, encoder = small_unet(mobileone), small_encoder()
    files = save_unet(tmp_path / "last.pth", unet), save_encoder(tmp_path / "feather.pth", encoder)
    found = take(*files)
    assert found.components == ("audio", "renderer")
    assert found.folded == ({"batch norm": 169, "branched block": 53} if mobileone else {"batch norm": 80})
    assert error_of(found.folder, {"audio": encoder, "renderer": unet}) < 1e-5
    config = json.loads((found.folder / "config.json").read_text())
    assert config["variant"] == ("mobileone" if mobileone else "original") and config["license"] == "apache-2.0"
    assert config["adopted"] == [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in files
    ]
    assert licence_of(found.folder) == "apache-2.0"
    assert [path.name for path in found.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_audio2expression_computes_what_transformers_does(tmp_path: Path, take: Adopt) -> None:
    """With the weight norm of its positions folded, and what is never called left beside it."""
    module = small_expression()
    found = take(save_expression(tmp_path / "streaming.tar", module), family="audio2expression")
    assert found.components == ("expression",) and found.folded == {"weight norm": 1}
    assert error_of(found.folder, {"expression": module}) < 1e-5
    for name in ("audio_encoder.lm_head.weight", "audio_encoder.masked_spec_embed", "identity_encoder.grus.bias_hh_l0"):
        assert f"backbone.{name}" in found.unused
    model, _ = original(found.folder)
    unread = Checkpoint(found.folder).unread(slot.tensor for slot in model.slots)
    assert len(unread) == 7 and all(name.split(".")[2] in ("lm_head", "masked_spec_embed", "grus") for name in unread)


POSE = {"expression": 52, "rotation": 3, "neck": 3, "jaw": 3, "eyes": 6, "translation": 3}


def test_an_avatar_of_gaussians_moves_as_the_head_that_it_was_made_of(tmp_path: Path, take: Adopt) -> None:
    """Who it is folded away; no multiple of 32 points, so that some fill it up."""
    head = flame(70)
    torch.save(head, tmp_path / "avatar.pth")
    model, weights = original(take(tmp_path / "avatar.pth", family="gaussian").folder)
    (component,) = model.components
    animate, attributes = component.entries
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 1e-3, 1.0):
        pose = {name: torch.randn(1, count, generator=generator) * size for name, count in POSE.items()}
        with torch.no_grad(), dialect.weights(weights):
            found = component.module(animate, {})(*(pose[port.name] for port in animate.inputs))[0]
            drawn = component.module(attributes, {})(torch.arange(11)[None])[0]
        assert found.shape == (1, 96, 3)
        np.testing.assert_allclose(found[:, :70], animated(head, pose), atol=2e-6)
    parts = [head[name] for name in ("rotation", "scaling", "opacity", "shs")]
    np.testing.assert_array_equal(drawn[0, :, :70], torch.cat(parts, 1).T)
    assert not drawn[0, 7, 70:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": torch.ones(1, 5)}, r"'shapedirs' has shape \[40, 3, 58\], not \[40, 3, 57\]"),
        ({"J_regressor": None}, "'J_regressor' is missing"),
        ({"parents": torch.tensor([-1, 0, 1, 2, 3])}, r"'parents' is not \[-1, 0, 1, 1, 1\]"),
        ({"xyz": torch.ones(70, 4)}, r"'xyz' has shape \[70, 4\], not \[any, 3\]"),
        ({"teeth": torch.ones(2)}, "'teeth' is none of this family's"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path: Path, take: Adopt, change: dict[str, Any], message: str) -> None:
    head = {name: tensor for name, tensor in {**flame(70), **change}.items() if tensor is not None}
    torch.save(head, tmp_path / "avatar.pth")
    with pytest.raises(EdgewrightError, match=rf"avatar\.pth: tensor {message}"):
        take(tmp_path / "avatar.pth", family="gaussian")


def test_the_offline_variant_is_refused_by_name(tmp_path: Path, take: Adopt) -> None:
    module = small_expression()
    module.identity_encoder.transformer_encoder = torch.nn.TransformerEncoder(  # type: ignore[union-attr]
        torch.nn.TransformerEncoderLayer(96, 8, 192, batch_first=True), 1
    )
    with pytest.raises(
        EdgewrightError, match=r"is the offline variant, with backbone\.identity_encoder\.transformer_enco"
    ):
        take(save_expression(tmp_path / "offline.tar", module), family="audio2expression")


def _bare(state: dict[str, Any]) -> Any:
    return state


def _wrapped(state: dict[str, Any]) -> Any:
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 2}


def _arguments(state: dict[str, Any]) -> Any:
    return {"model": state, "args": {"num_blocks": 3}, "optimizer": {"state": {}}}


@pytest.mark.parametrize("nest", [_bare, _wrapped, _arguments])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_every_nesting_gives_the_same_tensors(published: list[Path], tmp_path: Path, nest: Any, zipped: bool) -> None:
    state = read_pickle(published[0]).tensors
    other = tmp_path / "other.pth"
    torch.save(nest(state), other, _use_new_zipfile_serialization=zipped)
    found = read_pickle(other).tensors
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_renderer_alone_is_enough(published: list[Path], take: Adopt) -> None:
    """Here with the features that the published encoder would give, so a picture of 160 pixels."""
    found = take(published[0], licence=None)
    model, _ = original(found.folder)
    assert found.components == ("renderer",)
    assert [port.sized({}) for port in model.components[0].entries[0].inputs] == [(1, 6, 160, 160), (1, 16, 32, 32)]
    assert found.licence is None and licence_of(found.folder) is None


def test_weights_without_training_are_taken_as_they_are(tmp_path: Path, take: Adopt) -> None:
    """A U-Net that upstream re-parameterized before it was saved."""
    folded = tmp_path / "folded.pth"
    first = take(save_unet(tmp_path / "last.pth", small_unet(True)), out=tmp_path / "first")
    from safetensors.torch import load_file

    tensors = load_file(first.folder / "model.safetensors")
    torch.save({name.removeprefix("unet."): tensor for name, tensor in tensors.items()}, folded)
    second = take(folded, out=tmp_path / "second")
    assert second.folded == {}
    assert (second.folder / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()


# -- bad input --------------------------------------------------------------------------------------------------


class _Runs:
    """What pickle would run when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path, take: Adopt) -> None:
    mark, file = tmp_path / "mark", tmp_path / "code.pth"
    torch.save({"model": small_encoder().state_dict(), "extra": _Runs(mark)}, file)
    with pytest.raises(EdgewrightError, match=r"code\.pth: this pickle asks to run \S*(Path|touch|getattr)\S*, which"):
        take(file)
    file.write_bytes(pickle.dumps(_Runs(mark)))
    with pytest.raises(EdgewrightError, match=r"asks to run \S+, which was not done"):
        take(file)
    assert not mark.exists() and not (tmp_path / "adopted").exists()


def _without(name: str) -> Any:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def _with(**tensors: Any) -> Any:
    return lambda state: {**state, **{key.replace("__", "."): tensor for key, tensor in tensors.items()}}


REFUSED = {
    "missing": (
        _without("up2.conv.double_conv.0.conv.3.weight"),
        r"'up2\.conv\.double_conv\.0\.conv\.3\.weight' is missing",
    ),
    "geometry missing": (_without("inc.inconv.conv.6.weight"), r"'inc\.inconv\.conv\.6\.weight' is missing"),
    "norm incomplete": (_without("audio_model.bn3.running_var"), r"'audio_model\.bn3\.running_var' is missing"),
    "norm alone": (_with(extra__running_mean=torch.zeros(3)), r"batch norm 'extra' stands behind no convolution"),
    "norm of another width": (
        _with(audio_model__bn3__weight=torch.ones(5)),
        r"'audio_model\.bn3\.weight' has shape \[5\]",
    ),
    "other shape": (
        _with(outc__conv__weight=torch.ones(3, 9, 1, 1)),
        r"'outc\.conv\.weight' has shape \[3, 9, 1, 1\]; besi",
    ),
    "no shape": (_with(outc__conv__weight=torch.ones(())), r"'outc\.conv\.weight' has shape \[\]"),
    "too many": (
        _with(style__weight=torch.ones(2)),
        r"'style\.weight' is none of this family's; is it another variant",
    ),
    "not finite": (
        _with(outc__conv__bias=torch.full((3,), torch.nan)),
        r"'outc\.conv\.bias' has NaN or infinite values",
    ),
    "no tensor": (_with(extra=[1, 2]), r"'extra' is no tensor"),
    "sparse": (_with(extra=torch.eye(3).to_sparse()), r"tensor 'extra' is sparse"),
    "nothing": (lambda state: {}, "holds no tensors"),
    "of something else": (
        lambda state: {"head.weight": torch.ones(2)},
        r"holds none of the U-Net, FeatherHuBERT, but 'head\.w",
    ),
    "no dict": (lambda state: torch.ones(3), "holds a Tensor; a state dict is expected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(published: list[Path], tmp_path: Path, take: Adopt, name: str) -> None:
    change, message = REFUSED[name]
    file = tmp_path / "changed.pth"
    torch.save(change(read_pickle(published[0]).tensors), file)
    with pytest.raises(EdgewrightError, match=rf"changed\.pth: .*{message}"):
        take(file)
    assert not (tmp_path / "adopted").exists()


def test_files_that_do_not_belong_together_are_refused(published: list[Path], tmp_path: Path, take: Adopt) -> None:
    with pytest.raises(EdgewrightError, match=r"last\.pth: is the U-Net, and so is \S+last\.pth; give one"):
        take(published[0], published[0])
    with pytest.raises(EdgewrightError, match="needs the file of the U-Net too"):
        take(published[1])
    (tmp_path / "adopted").mkdir()
    with pytest.raises(EdgewrightError, match="is there already, and is not overwritten"):
        take(*published)
    with pytest.raises(EdgewrightError, match="--license: 'all rights reserved' is no identifier"):
        take(*published, licence="all rights reserved", out=tmp_path / "new")


def test_what_is_no_pickle_is_refused(tmp_path: Path, take: Adopt) -> None:
    import gzip

    for content, message in (
        (b"", "not a PyTorch pickle, or a damaged one"),
        (b"PK\x03\x04 half of an archive", "not a PyTorch pickle, or a damaged one"),
        (gzip.compress(b"x"), "is a gzip archive; unpack it"),
    ):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(EdgewrightError, match=message):
            take(tmp_path / "file.pth")
    with pytest.raises(EdgewrightError, match="a folder"):
        take(tmp_path)
    with pytest.raises(EdgewrightError, match="cannot be read"):
        take(tmp_path / "none.pth")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000), value=st.integers(0, 255), zipped=st.booleans(), cut=st.booleans())
def test_a_damaged_file_ends_in_one_message(tmp_path: Path, at: int, value: int, zipped: bool, cut: bool) -> None:
    file = tmp_path / "damaged.pth"
    torch.save(
        {"model": {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}}, file, _use_new_zipfile_serialization=zipped
    )
    content = bytearray(file.read_bytes())
    content[at % len(content)] = value
    file.write_bytes(content[: at % len(content)] if cut else content)
    try:
        read_pickle(file)
    except EdgewrightError as error:
        assert str(file) in str(error)


# -- norms of weights, which torch itself computes ---------------------------------------------------------------


def _folded(module: torch.nn.Module, tmp_path: Path) -> dict[str, torch.Tensor]:
    from compiler.adopt.folding import fold

    return fold(tmp_path, dict(module.state_dict()), ())[0]


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("dim", [0, 2, None])
@pytest.mark.parametrize("new", [False, True], ids=["weight_g", "parametrizations"])
def test_weight_norm_folds(tmp_path: Path, dim: int | None, new: bool) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(12, 8, 5, groups=4)
    norm = torch.nn.utils.parametrizations.weight_norm if new else torch.nn.utils.weight_norm
    normed = norm(convolution, dim=dim)
    with torch.no_grad():
        for name, value in normed.named_parameters():
            if name.endswith(("_g", "original0")):
                value.mul_(1.7)
    _ = normed(torch.zeros(1, 12, 9))
    found = _folded(normed, tmp_path)
    assert found.keys() == {"weight", "bias"}
    _close(found["weight"], normed.weight)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [lambda: torch.nn.Conv2d(6, 8, 3), lambda: torch.nn.ConvTranspose2d(6, 8, 3)])
@pytest.mark.parametrize("new", [False, True], ids=["weight_orig", "parametrizations"])
def test_spectral_norm_folds(tmp_path: Path, make: Any, new: bool) -> None:
    torch.manual_seed(0)
    norm = torch.nn.utils.parametrizations.spectral_norm if new else torch.nn.utils.spectral_norm
    normed = norm(make())
    for _ in range(20):
        normed(torch.randn(1, 6, 5, 5))
    normed.eval()
    normed(torch.zeros(1, 6, 5, 5))
    found = _folded(normed, tmp_path)
    assert found.keys() == {"weight", "bias"}
    _close(found["weight"], normed.weight)
