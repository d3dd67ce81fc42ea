import re
from pathlib import Path

import pytest
import torch
import yaml

import manual.teachers
from eval.metrics.cost import count_flops
from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.networks import DhariwalUNetConfig, FlowNetworkConfig, NetworkConfig, SongUNetConfig
from pipeline.networks.layers import Attention
from pipeline.storage.hashing import file_sha256
from pipeline.teachers import catalogue
from pipeline.teachers.loading import fetch_file, load_teacher, resolve
from tests.support.originals import original, write

TINY_FLOW = {
    "resolution": 16,
    "image_channels": 3,
    "channels": 16,
    "channel_mult": [1, 1, 2],
    "num_blocks": 1,
    "attention_resolutions": [8],
    "convention": "rectified-flow",
    "time_scale": 999,
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(catalogue.FOLDER, str(tmp_path / "teachers"))
    (tmp_path / "teachers").mkdir()
    return tmp_path / "teachers"


def write_entry(path: Path, **fields: object) -> Path:
    path.write_text(yaml.safe_dump({"format": "score-sde", "file": "tiny.pth", "network": TINY_FLOW, **fields}))
    return path


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edm-cifar10", 55.7),
        ("edm-imagenet64", 295.9),
        ("2rf", 61.8),
        ("slimflow-3m", 3.437),
        ("slimflow-7m", 6.990),
        ("slimflow-15m", 15.707),
        ("slimflow-28m", 27.906),
    ],
)
def test_the_networks_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    network = catalogue.named_teachers()[name].entry.network
    assert network is not None
    assert round(count(network) / 1e6, 3 if millions < 50 else 1) == millions


def test_every_entry_has_as_many_parameters_as_it_says() -> None:
    for known in catalogue.named_teachers().values():
        assert known.entry.network is not None
        assert known.entry.parameters == pytest.approx(count(known.entry.network) / 1e6, rel=2e-3), known.name


def test_the_paper_s_imagenet_student_has_80_7_million_parameters_and_31_0_billion_multiply_adds() -> None:
    student = DhariwalUNetConfig(
        resolution=64,
        image_channels=3,
        channels=128,
        channel_mult=(1, 2, 2, 4),
        num_blocks=2,
        attention_resolutions=(32, 16),
        num_classes=1000,
    )
    assert round(count(student) / 1e6, 1) == 80.7
    assert round(convolution_macs(student) / 1e9, 1) == 31.0


@pytest.mark.parametrize(
    ("name", "billions"),
    [("2rf", 10.3), ("slimflow-15m", 3.7), ("slimflow-28m", 6.6), ("adm-imagenet64", 103.4), ("edm-cifar10", 20.7)],
)
def test_the_papers_multiply_adds_are_ours_without_what_their_counter_does_not_see(name: str, billions: float) -> None:
    """Their tables leave out the products of queries, keys and values, which are no layers; and of networks whose
    attention has matrices for its 1x1 convolutions, as score_sde's have, those too. EDM's 55.7 M network, which has
    convolutions there, is printed as 20.6; without them it is 20.66.
    """
    network = catalogue.named_teachers()[name].entry.network
    assert network is not None
    unseen = 0 if isinstance(network, DhariwalUNetConfig) else attention_macs(network)
    assert round((convolution_macs(network) - unseen) / 1e9, 1) == billions


def build_on_meta(config: FlowNetworkConfig) -> networks.Network:
    with torch.device("meta"):
        return networks.build(config).to("meta")


def count(config: FlowNetworkConfig) -> int:
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())


def convolution_macs(config: FlowNetworkConfig) -> int:
    """All multiply-adds but those between queries, keys and values."""
    network = build_on_meta(config)
    return count_flops(network) // 2 - sum(2 * pixels**2 * width for pixels, width in attentions(network))


def attention_macs(config: FlowNetworkConfig) -> int:
    """Of the 1x1 convolutions around attention: three make queries, keys and values, one takes the result."""
    return sum(4 * pixels * width**2 for pixels, width in attentions(build_on_meta(config)))


def attentions(network: networks.Network) -> list[tuple[int, int]]:
    """The pixels and channels that each attention sees."""
    seen: list[tuple[int, int]] = []
    for module in network.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(
                lambda _, inputs, __: seen.append((inputs[0][0, 0].numel(), inputs[0].shape[1]))
            )
    count_flops(network)
    return seen


def test_the_documentation_shows_every_public_teacher() -> None:
    shown = manual.teachers.page()
    for known in catalogue.named_teachers().values():
        entry = known.entry
        assert entry.network is not None
        row = next((line for line in shown.splitlines() if line.startswith(f"| `{known.name}` |")), "")
        size = "x".join(map(str, entry.network.shape))
        for text in (entry.data_set, size, f"{entry.parameters:g} M", entry.licence.split(",")[0]):
            assert text in row, (known.name, text)
        if entry.fid:
            assert f"{entry.fid.value} ({entry.fid.evaluations})" in row


def test_a_teacher_that_is_not_here_says_which_file_to_put_where(own_folder: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load_teacher("2rf")
    for text in (str(own_folder / "2rf.pth"), "teachers fetch 2rf", "https://drive.google.com/file/d/16_5l"):
        assert text in str(caught.value)


def test_a_web_page_saved_as_a_checkpoint_is_recognised(own_folder: Path) -> None:
    (own_folder / "2rf.pth").write_text("<!DOCTYPE html><title>Google Drive - Quota exceeded</title>")
    with pytest.raises(BadInput, match=r"2rf\.pth: wanted a checkpoint; it is a web page"):
        load_teacher("2rf")


@pytest.mark.parametrize(
    ("name", "fixture", "said"),
    [
        (
            "edm-cifar10",
            "edm-vp",
            r"wanted the network of edm-cifar10; it is another one \(resolution: 8 there, 32 asked",
        ),
        ("edm-cifar10", "slimflow", "wanted an EDM pickle"),
        ("2rf", "slimflow", r"wanted all_modules\.0\.weight of \[512, 128\]; it is \[64, 16\]"),
        ("2rf", "edm-ve", "wanted a PyTorch checkpoint"),
        ("adm-imagenet64", "adm", r"wanted time_embed\.0\.weight of \[768, 192\]; it is \[512, 128\]"),
        ("cm-imagenet64", "slimflow", "wanted a dictionary of tensors alone; found keys optimizer, model, ema, step"),
    ],
)
def test_the_wrong_file_for_a_name_is_named_with_what_was_wanted_and_found(name: str, fixture: str, said: str) -> None:
    path = catalogue.named_teachers()[name].path
    write(fixture, path)
    with pytest.raises(BadInput, match=said) as caught:
        load_teacher(name)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_one_s_own_is_a_teacher_by_the_name_or_the_path_of_its_entry(own_folder: Path) -> None:
    entry = write_entry(own_folder / "mine.yaml")
    write("slimflow", own_folder / "tiny.pth")
    by_name, by_path = load_teacher("mine"), load_teacher(str(entry))
    assert by_name.name == by_path.name == "mine"
    assert by_name.sha256 == by_path.sha256 == resolve("mine").sha256
    assert by_name.weights == f"the EMA weights, {own_folder / 'tiny.pth'}"
    assert catalogue.named_teachers()["mine"].path.is_file()
    tensors = original("slimflow").tensors
    velocity = by_name.velocity(tensors["x"], 1 - tensors["time"] / 999, None)
    torch.testing.assert_close(velocity, -tensors["out_ema"], rtol=1e-5, atol=3e-5)


def test_what_an_entry_says_of_its_network_is_part_of_the_teachers_identity(own_folder: Path) -> None:
    write("slimflow", own_folder / "tiny.pth")
    write_entry(own_folder / "mine.yaml")
    one = load_teacher("mine").sha256
    write_entry(own_folder / "mine.yaml", network={**TINY_FLOW, "time_scale": 1000})
    assert load_teacher("mine").sha256 != one
    write_entry(own_folder / "mine.yaml")
    assert load_teacher("mine").sha256 == one


def test_an_edm_pickle_needs_no_entry(tmp_path: Path) -> None:
    path = write("edm-vp", tmp_path / "net.pkl")
    teacher = load_teacher(str(path))
    assert (teacher.name, teacher.shape, teacher.num_classes) == ("net", (3, 8, 8), 4)
    assert teacher.t_start == 80 / 81
    assert teacher.sha256 == file_sha256(path)
    assert isinstance(teacher.network, networks.SongUNet)


def test_a_pth_file_by_itself_is_asked_to_be_described(tmp_path: Path) -> None:
    path = write("slimflow", tmp_path / "net.pth")
    with pytest.raises(BadInput, match=r"does not say how its network is built: describe it in a \.yaml entry"):
        load_teacher(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a list", "wanted the fields of a teacher's entry"),
        ("format: [", "not YAML"),
        ("format: score-sde\nfile: a.pth", "does not say how its network is built: give 'network'"),
        ("format: gguf\nfile: a.pth", "'safetensors', 'edm', 'score-sde', 'adm' or 'adm-legacy'"),
        ("format: edm\nfile: a.pkl\nfidd: 2", "unknown key 'fidd'; valid keys: format, file"),
        ("file: a.pkl", "'format' is missing$"),
        ("format: edm\nfile: ../a.pkl\nsource: https://example.org/a", "not a path: ../a.pkl"),
        ("format: edm\nfile: a.pkl\nsource: ftp://example.org/a", "source: ftp://example.org/a: wanted https"),
        ("format: edm\nfile: a.pkl\nsha256: deadbeef", "sha256"),
        (
            "format: adm\nfile: a.pt\nnetwork: {resolution: 8, image_channels: 3}",
            "networks of family dhariwal, not song",
        ),
        (
            "format: score-sde\nfile: a.pt\nnetwork: {resolution: 8, image_channels: 3, second_time: true}",
            "a teacher has no second_time",
        ),
        (
            "format: score-sde\nfile: a.pt\nnetwork: {resolution: 8, image_channels: 3, foo: 1}",
            r"unknown key 'network\.foo'; valid keys of family song: resolution, image_channels, .*time_embedding",
        ),
        ("[" * 1000, "not YAML"),
    ],
)
def test_an_entry_with_a_fault_is_answered_with_what_it_should_be(content: str, said: str, own_folder: Path) -> None:
    (own_folder / "mine.yaml").write_text(content)
    with pytest.raises(BadInput, match=said) as caught:
        load_teacher("mine")
    assert "mine.yaml" in str(caught.value)
    assert "mine" not in catalogue.named_teachers()
    assert any("mine.yaml" in fault for fault in catalogue.find_faults())
    with pytest.raises(BadInput, match="no teacher 'nosuch': wanted one of digits"):
        load_teacher("nosuch")


def test_an_entry_whose_file_no_folder_can_hold_hides_no_other(own_folder: Path) -> None:
    (own_folder / "mine.yaml").write_text(f"format: safetensors\nfile: {'x' * 300}")
    assert catalogue.table(catalogue.named_teachers()).row_count == len(catalogue.named_teachers())


def test_a_file_that_is_not_the_one_that_was_fetched_is_refused(own_folder: Path) -> None:
    write_entry(own_folder / "mine.yaml", source="https://example.org/tiny.pth")
    path = write("slimflow", own_folder / "tiny.pth")
    fetch_file("mine")
    assert (own_folder / "tiny.pth.sha256").read_text() == f"{file_sha256(path)}  tiny.pth\n"
    load_teacher("mine")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BadInput, match=r"tiny\.pth: wanted the file whose sha256 is .*; it is .*: remove it, and tiny"):
        load_teacher("mine")
    with pytest.raises(BadInput, match="wanted the file whose sha256 is"):
        fetch_file("mine")
    for nonsense in (b"", b"\xff\xfe"):
        (own_folder / "tiny.pth.sha256").write_bytes(nonsense)
        with pytest.raises(BadInput, match="wanted the file whose sha256 is"):
            load_teacher("mine")


def test_a_pinned_sha256_in_an_entry_is_kept_to(own_folder: Path) -> None:
    write_entry(own_folder / "mine.yaml", sha256="0" * 64)
    write("slimflow", own_folder / "tiny.pth")
    with pytest.raises(BadInput, match=f"wanted the file whose sha256 is {'0' * 64}"):
        load_teacher("mine")


def test_only_what_comes_from_somewhere_is_fetched(own_folder: Path) -> None:
    for name in ("digits", "3rff"):
        with pytest.raises(BadInput, match=rf"wanted one of edm-cifar10, .*3rf, .*; got '{name}'"):
            fetch_file(name)


def test_a_download_that_fails_leaves_no_pin(own_folder: Path) -> None:
    write_entry(own_folder / "mine.yaml", source="http://127.0.0.1:9/tiny.pth")
    with pytest.raises(WorkFailed, match="where there is no network, put the file from"):
        fetch_file("mine")
    assert not list(own_folder.glob("tiny*"))


def test_the_folder_of_teachers_is_in_the_cache_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalogue.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert catalogue.teachers_folder() == Path("/somewhere/cache/traflow-pipeline/teachers")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert catalogue.teachers_folder() == Path.home() / ".cache/traflow-pipeline/teachers"


def test_the_default_family_of_a_network_is_song() -> None:
    assert isinstance(networks.parse_config({"resolution": 8, "image_channels": 1}), SongUNetConfig)
    assert re.search("dhariwal", str(NetworkConfig))


def test_a_file_in_the_working_folder_does_not_take_a_teachers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("not a teacher")
    assert resolve("digits").absolute == "digits"
    assert load_teacher("digits").shape == (1, 8, 8)


def test_an_entry_by_its_path_is_fetched_by_its_path(tmp_path: Path) -> None:
    entry = write_entry(tmp_path / "edm-ffhq64.yaml", source="https://example.org/tiny.pth")
    with pytest.raises(BadInput, match=f"run traflow-pipeline teachers fetch {entry}"):
        load_teacher(str(entry))
    assert resolve(str(entry)).absolute == str(entry)


def test_what_the_file_system_refuses_is_one_line(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="File name too long"):
        load_teacher("x" * 300)
    (own_folder / "2rf.pth").mkdir()
    with pytest.raises(BadInput, match="it is not there"):
        load_teacher("2rf")
    monkeypatch.setenv(catalogue.FOLDER, str(write_entry(own_folder / "file.yaml")))
    with pytest.raises((BadInput, WorkFailed), match="could not be written: File exists"):
        fetch_file("2rf")
    monkeypatch.setenv(catalogue.FOLDER, "~nobody-of-this-name/x")
    with pytest.raises(BadInput, match="wanted a folder for teachers"):
        load_teacher("2rf")


def test_a_web_page_is_recognised_by_path_too(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_text("<html>404")
    with pytest.raises(BadInput, match=r"net\.pkl: wanted a checkpoint; it is a web page"):
        load_teacher(str(tmp_path / "net.pkl"))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("2rf", 10.8), ("slimflow-15m", 3.9), ("slimflow-28m", 6.9), ("adm-imagenet64", 109.7), ("edm-cifar10", 21.2)
    ],
)  # fmt: skip
def test_all_of_it_counted_the_networks_have_the_multiply_adds_that_the_docs_say(name: str, billions: float) -> None:
    network = catalogue.named_teachers()[name].entry.network
    assert network is not None
    assert count_flops(build_on_meta(network)) / 2e9 == pytest.approx(billions, abs=0.051)
