import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from eval.features import digit_classifier, spaces, weights
from eval.features.spaces import FEATURES, Extracted, Extractor, FeatureSpace, load_space, resizer
from eval.features.weights import Unavailable
from eval.metrics.distances import frechet_distance, moments
from pipeline.common.errors import BadInput, WorkFailed
from tests.support.images import pictures, save_pngs
from tests.support.inception import pin, save_inception
from tests.support.spaces import small_space
from trainer.data.image_set import to_float
from trainer.data.images import load_digits
from trainer.distillation.distance import BACKBONES

CPU = torch.device("cpu")
MODES = {"clean": "inception", "legacy_tensorflow": "inception-tf", "legacy_pytorch": "inception-torch"}


def namesake(device: torch.device) -> FeatureSpace:
    return replace(small_space(device), name="inception")


def failing(device: torch.device) -> FeatureSpace:
    def extract(images: NDArray[np.uint8]) -> Extracted:
        raise ValueError("no\nsuch thing")

    return replace(small_space(device), extract=extract)


def short(device: torch.device) -> FeatureSpace:
    return replace(small_space(device), extract=lambda images: Extracted(np.zeros((1, 4), np.float32)))


def not_a_space(device: torch.device) -> int:
    return 3


def test_the_shipped_classifier_names_scans_it_never_saw() -> None:
    digits = load_digits()
    unseen = slice(int(digit_classifier.TRAIN_SHARE * len(digits)), None)
    with torch.no_grad():
        logits = digit_classifier.load()(torch.from_numpy(to_float(digits.images[unseen])))
    assert (logits.argmax(dim=1).numpy() == digits.labels[unseen]).mean() > 0.97


def test_its_features_tell_digits_from_noise_and_from_fewer_digits() -> None:
    space, digits = load_space("digits", CPU), load_digits()
    found = space.extract(digits.images).features
    assert found.shape == (1797, digit_classifier.NUM_FEATURES)
    assert found.dtype == np.float32
    even = moments(found[::2])
    same = frechet_distance(even, moments(found[1::2]))
    noise = np.random.default_rng(0).integers(0, 256, (900, 1, 8, 8), dtype=np.uint8)
    assert frechet_distance(even, moments(space.extract(noise).features)) > 10 * same
    assert frechet_distance(even, moments(found[1::2][digits.labels[1::2] < 5])) > 5 * same


def test_a_classifier_of_digits_of_another_size_is_a_space_by_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = digit_classifier.DigitClassifier(12), tmp_path / "classifier.safetensors"
    save_file(network.state_dict(), path)
    space, images = load_space(str(path), CPU), pictures(3, size=12)[:, :1]
    assert space.shape == (1, 12, 12)
    with torch.no_grad():
        wanted = network.features(torch.from_numpy(to_float(images)))
    np.testing.assert_allclose(space.extract(images).features, wanted.numpy(), rtol=1e-5, atol=1e-6)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match=r"classifier.safetensors: wanted a file that python -m eval.features.digit"):
        load_space(str(path), CPU)


def test_features_of_squeezenet_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / BACKBONES["squeeze"])
    images = pictures(3, size=224)  # so large that nothing is resized
    found = load_space("squeezenet", CPU).extract(images).features
    normalise = torchvision.transforms.Normalize(spaces.IMAGENET_MEAN, spaces.IMAGENET_STD)
    with torch.no_grad():
        wanted = network.features(normalise(torch.from_numpy(images) / 255)).mean((2, 3))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_distances_are_clean_fids_own(mode: str, tmp_path: Path) -> None:
    """The whole path from images through resizer and network to the distance, against clean-fid's over files."""
    from cleanfid.fid import compute_fid

    sets = [pictures(40), pictures(30, seed=1)]
    folders = [save_pngs(tmp_path / name, images) for name, images in zip("ab", sets, strict=True)]

    def network(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, x.shape[2] // 2).flatten(1)

    theirs = compute_fid(*folders, mode=mode, num_workers=0, device=CPU, custom_feat_extractor=network, verbose=False)
    extract = Extractor(resizer(mode), lambda x: (network(x), None), CPU)
    one, other = (moments(extract(images).features) for images in sets)
    ours = frechet_distance(one, other)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours > 1


def test_a_resizer_makes_a_difference() -> None:
    """So that the tests against clean-fid could fail."""
    images = pictures(4, size=512)
    found = [Extractor(resizer(mode), lambda x: (x.flatten(1), None), CPU)(images).features for mode in MODES]
    assert abs(found[0] - found[2]).mean() > 1


def test_batches_and_threads_do_not_change_the_order() -> None:
    images = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(8, axis=2).repeat(8, axis=3)
    found = Extractor(resizer("clean"), lambda x: (x.mean((2, 3)), None), CPU)(images)
    np.testing.assert_allclose(found.features, np.arange(200)[:, None].repeat(3, axis=1), atol=1e-3)


def test_inception_sees_what_clean_fid_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cleanfid.fid import get_folder_features

    network, images = save_inception(tmp_path / "weights", monkeypatch), pictures(6)
    folder = save_pngs(tmp_path / "images", images)
    space = load_space("inception", CPU)
    theirs = get_folder_features(
        folder, lambda x: network.layers((x - 128) / 128), num_workers=0, device=CPU, mode="clean", verbose=False
    )
    found = space.extract(images)
    np.testing.assert_allclose(found.features, theirs, atol=1e-5)
    assert found.probabilities is None
    assert space.sha256 == weights.FILES["inception"].sha256
    assert "clean" in space.resizer


def test_legacy_tensorflow_resizes_inside_the_network_and_gives_probabilities_without_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = save_inception(tmp_path / "weights", monkeypatch), pictures(6)
    found = load_space("inception-tf", CPU).extract(images)
    with torch.no_grad():
        wanted = network(torch.from_numpy(images), return_features=True)
        classified = network(torch.from_numpy(images), no_output_bias=True)
    np.testing.assert_allclose(found.features, wanted, atol=1e-5)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, classified, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)


def test_features_and_probabilities_take_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inception(tmp_path / "weights", monkeypatch)
    space = load_space("inception-tf", CPU)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        space.extract(pictures(6))
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert calls["aten::adaptive_avg_pool2d"] == 1


def test_grey_images_are_shown_in_three_equal_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inception(tmp_path / "weights", monkeypatch)
    space, grey = load_space("inception", CPU), pictures(3, channels=1)
    np.testing.assert_array_equal(space.extract(grey).features, space.extract(grey.repeat(3, axis=1)).features)


def test_pytorch_inception_has_the_weights_of_the_checked_file_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleanfid import inception_pytorch

    before = inception_pytorch.load_state_dict_from_url
    torch.manual_seed(0)
    state = blank_inception_state()
    path = tmp_path / weights.FILES["inception-torch"].name
    torch.save(state, path)
    pin(monkeypatch, "inception-torch", path)
    space = load_space("inception-torch", CPU)
    found = space.extract(pictures(2)).features
    assert found.shape == (2, 2048)
    assert inception_pytorch.load_state_dict_from_url is before
    network = spaces._pytorch_inception(state)
    np.testing.assert_array_equal(network.state_dict()["blocks.0.0.conv.weight"], state["Conv2d_1a_3x3.conv.weight"])


def blank_inception_state() -> dict[str, Tensor]:
    """The tensors of pytorch-fid's file with random values."""
    from cleanfid import inception_pytorch

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecations
        patch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        state: dict[str, Tensor] = inception_pytorch.fid_inception_v3().state_dict()
    return state


def test_a_file_with_another_hash_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inception(tmp_path, monkeypatch)
    with (tmp_path / weights.FILES["inception"].name).open("ab") as file:
        file.write(b"!")

    def load_code(*args: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.jit, "load", load_code)
    with pytest.raises(BadInput, match="wanted the file whose sha256"):
        load_space("inception", CPU)


def test_clean_fid_leaves_the_users_warnings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inception(tmp_path, monkeypatch)
    before = list(warnings.filters)
    load_space("inception", CPU).extract(pictures(1))
    resizer("legacy_pytorch")
    assert warnings.filters == before


@pytest.fixture
def dinov2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny random network, saved by transformers, which stands in for the published one."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dinov2-large")
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    return network


def test_dinov2_is_the_class_token_of_images_of_224_pixels(dinov2: Any) -> None:
    images = pictures(3)
    space = load_space("dinov2", CPU)
    assert space.extract(images).features.shape == (3, 16)
    x = np.stack([np.asarray(Image.fromarray(i.transpose(1, 2, 0)).resize((224, 224), 3)) for i in images]) / 255
    x = (x - spaces.IMAGENET_MEAN) / spaces.IMAGENET_STD
    dinov2.embeddings.position_embeddings = nn.Parameter(spaces._positions(dinov2.embeddings))
    with torch.no_grad():
        hidden = dinov2(torch.from_numpy(x).permute(0, 3, 1, 2).float()).last_hidden_state
    np.testing.assert_allclose(space.extract(images).features, hidden[:, 0], atol=1e-4)


def test_dinov2_interpolates_positions_as_its_own_code_does(dinov2: Any) -> None:
    """A ramp of 37 rows becomes one of 16, whose steps are 37 / (16 + 0.1) and not transformers' 37 / 16."""
    rows = torch.arange(37.0)[:, None].expand(37, 37).reshape(1, -1, 1).repeat(1, 1, 16)
    dinov2.embeddings.position_embeddings.data[:, 1:] = rows
    found = spaces._positions(dinov2.embeddings)
    assert found.shape == (1, 257, 16)
    ramp = found[0, 1:, 0].reshape(16, 16)[1:-1, 0]  # its ends are clamped
    places = torch.arange(1, 15) + 0.5
    bicubic = 0.06  # torch's is not exact on a ramp
    torch.testing.assert_close(ramp, 37 / 16.1 * places - 0.5, atol=bicubic, rtol=0)
    assert (ramp - (37 / 16 * places - 0.5)).abs().max() > 2 * bicubic


def test_weights_of_another_network_are_no_dinov2(dinov2: Any, tmp_path: Path) -> None:
    (tmp_path / "dinov2-large" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="wanted the weights of facebook/dinov2-large"):
        load_space("dinov2", CPU)


@pytest.mark.parametrize("name", ["inception", "inception-tf", "inception-torch", "dinov2"])
def test_missing_weights_say_which_file_and_where(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    monkeypatch.setenv("TRAFLOW_OFFLINE", "1")
    file = weights.FILES[name.removesuffix("-tf")]
    monkeypatch.setitem(weights.FILES, name.removesuffix("-tf"), replace(file, elsewhere=list))
    with pytest.raises(Unavailable) as caught:
        load_space(name, CPU)
    assert str(tmp_path / file.name) in str(caught.value)
    assert file.name.rpartition("/")[2] in str(caught.value).partition("put the file from ")[2]


def test_a_space_of_ones_own_is_a_factory() -> None:
    space = load_space("tests.support.spaces:small_space", CPU)
    assert space.extract(pictures(5)).features.shape == (5, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", f"wanted one of {', '.join(FEATURES)}, a digit classifier's .safetensors file, or module:factory"),
        ("no.such.module:factory", "wanted module:factory"),
        ("tests.eval.features.test_spaces:no_such_factory", "wanted module:factory"),
        ("tests.eval.features.test_spaces:not_a_space", "wanted an eval.features.spaces.FeatureSpace, got int"),
        ("tests.eval.features.test_spaces:namesake", "'inception' is taken"),
    ],
)
def test_what_is_no_feature_space_is_refused_in_a_line(name: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_space(name, CPU)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["failing", "short"])
def test_what_a_space_of_ones_own_gets_wrong_is_blamed_on_it(name: str) -> None:
    space = load_space(f"tests.eval.features.test_spaces:{name}", CPU)
    with pytest.raises(WorkFailed, match=rf"features tests.eval.features.test_spaces:{name}: \w"):
        space.extract(pictures(2))


def test_images_that_a_space_does_not_take_are_refused() -> None:
    load_space("digits", CPU).check_shape((1, 8, 8), "x")
    for space, shape in (
        (load_space("digits", CPU), (1, 28, 28)),
        (small_space(CPU), (4, 32, 32)),
        (small_space(CPU), (9,)),
    ):
        with pytest.raises(BadInput, match=r"^x: wanted images of"):
            space.check_shape(shape, "x")


def test_every_space_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inception(tmp_path, monkeypatch)
    for name in ("digits", "inception", "inception-tf"):
        space = load_space(name, CPU)
        assert space.name == name
        json.dumps([space.title, space.resizer, space.sha256])


def reused(device: torch.device) -> FeatureSpace:
    """Answers into one buffer, and writes into what it is given."""
    buffer = np.zeros((2, 4), np.float32)

    def extract(images: NDArray[np.uint8]) -> Extracted:
        buffer[:] = images[:, 0, 0, :1]
        images[:] = 0
        return Extracted(buffer, buffer)

    return FeatureSpace("reused", "one buffer", "none", "0" * 64, extract)


def test_a_space_may_reuse_its_buffer_and_write_into_its_images() -> None:
    space = load_space("tests.eval.features.test_spaces:reused", CPU)
    batches = [np.full((2, 1, 4, 4), value, np.uint8) for value in (1, 2)]
    found = [space.extract(batch) for batch in batches]
    assert [float(one.features.mean()) for one in found] == [1, 2]
    assert [float(one.probabilities.mean()) for one in found if one.probabilities is not None] == [1, 2]
    assert [int(batch.max()) for batch in batches] == [1, 2]
