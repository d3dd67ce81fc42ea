"""What a student of another size takes of its teacher's network."""

import pytest
import torch

from pipeline import networks
from pipeline.networks import FlowNetwork, FlowNetworkConfig, MlpConfig
from pipeline.networks.unet import UNetConfig
from tests.support.problems import FAMILIES, shaken, tiny_config, tiny_network, with_second_time
from trainer.distillation.inheritance import counterpart, inherit
from trainer.distillation.student import from_teacher

X, T = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(0.2, 1.0, 8)


def numbered(config: FlowNetworkConfig) -> FlowNetwork:
    """A network whose every value along a layer's outputs tells its channel."""
    network = networks.build(config)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.arange(len(tensor)).reshape(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor))
    return network


def test_queries_keys_and_values_are_cut_each() -> None:
    teacher, network = numbered(tiny_config(channels=16)), networks.build(with_second_time(tiny_config(channels=8)))
    inherit(network, teacher)
    qkv = network.state_dict()["middle.0.attention.qkv.weight"][:, 0, 0, 0]  # 16 channels of 32
    assert qkv.tolist() == [*range(16), *range(32, 48), *range(64, 80)]


def test_scale_and_shift_are_cut_each() -> None:
    wide = FAMILIES["adm"]
    network = networks.build(with_second_time(wide.model_copy(update={"channels": 8})))
    inherit(network, numbered(wide))
    assert network.state_dict()["encoder.0.affine.bias"].tolist() == [*range(8), *range(16, 24)]


def test_features_and_skip_are_cut_each_where_the_decoder_joins_them() -> None:
    teacher, network = numbered(tiny_config(channels=16)), networks.build(with_second_time(tiny_config(channels=8)))
    inherit(network, teacher)
    for name, x, skip in (("decoder.0", 16, 16), ("decoder.4", 8, 8)):
        norm = network.state_dict()[f"{name}.norm0.weight"].tolist()
        assert norm == [*range(x), *range(2 * x, 2 * x + skip)]


def test_sines_and_cosines_are_taken_each_by_the_nearest_frequency() -> None:
    teacher, network = numbered(tiny_config(channels=16)), networks.build(with_second_time(tiny_config(channels=8)))
    for tensor in teacher.embed_t.layer0.parameters():
        tensor.data.copy_(torch.arange(tensor.shape[-1]).expand_as(tensor))
    inherit(network, teacher)
    # Four frequencies of eight: 0, 1/3, 2/3 and 1 of the way are nearest to 0, 2/7, 5/7 and 1.
    assert network.embed_t.layer0.weight[0].tolist() == [0, 2, 5, 7, 8, 10, 13, 15]
    torch.testing.assert_close(network.embed_s.layer0.weight, network.embed_t.layer0.weight)


def test_levels_are_matched_by_the_size_of_their_images() -> None:
    deep = tiny_network(resolution=8, channel_mult=(1, 1, 1))
    network = networks.build(with_second_time(tiny_config(resolution=8, channel_mult=(1, 1))))
    found = inherit(network, deep)
    for ours, theirs in (("encoder.2", "encoder.2"), ("decoder.0", "decoder.3"), ("decoder.2", "decoder.5")):
        torch.testing.assert_close(
            network.get_submodule(ours).state_dict()["conv1.weight"],
            deep.get_submodule(theirs).state_dict()["conv1.weight"],
        )
    assert "\n  decoder.8x8.up <- decoder.8x8.up" in str(found) or not found.new


def test_a_level_of_fewer_blocks_takes_them_from_the_first_to_the_last() -> None:
    assert [counterpart(i, 2, 3) for i in range(2)] == [0, 2]
    assert [counterpart(i, 3, 5) for i in range(3)] == [0, 2, 4]
    assert counterpart(0, 1, 4) == 0
    assert [counterpart(i, 4, 4) for i in range(4)] == [0, 1, 2, 3]


def test_a_level_of_more_blocks_has_new_ones_between() -> None:
    assert [counterpart(i, 4, 2) for i in range(4)] == [0, None, None, 1]
    assert [counterpart(i, 3, 1) for i in range(3)] == [0, None, None]
    assert counterpart(0, 1, 0) is None


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_same_network_is_inherited_whole(config: UNetConfig) -> None:
    network = networks.build(with_second_time(config))
    found = inherit(network, networks.build(config))
    assert (found.cut, found.new) == (0, [])
    assert "\n" not in str(found)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_smaller_network_of_any_family_has_nothing_new(config: UNetConfig) -> None:
    network = networks.build(with_second_time(config.model_copy(update={"channels": 8})))
    found = inherit(network, networks.build(config.model_copy(update={"channels": 16, "num_blocks": 2})))
    assert found.new == []
    assert " <- " in str(found)
    assert "cut to its size" in str(found)


def test_a_smaller_student_takes_the_leading_channels() -> None:
    teacher = tiny_network(channels=16)
    student, found = from_teacher(teacher, tiny_config(channels=8))
    assert found.cut > 50
    ours, theirs = student.network.state_dict(), teacher.state_dict()
    torch.testing.assert_close(ours["conv_in.weight"], theirs["conv_in.weight"][:8])
    torch.testing.assert_close(ours["conv_out.weight"], theirs["conv_out.weight"][:, :8])


def test_a_student_with_parts_the_teacher_lacks_names_them() -> None:
    student, found = from_teacher(tiny_network(), tiny_config(num_blocks=2))
    assert found.whole > 50
    assert any(name.startswith("encoder.1.") for name in found.new)
    assert "new (encoder.1." in str(found)
    assert "decoder.2x2 3 of 3 <- decoder.2x2 2 of 2" in str(found)
    assert torch.isfinite(student(X[:, :, :4, :4], T, 0 * T, None)).all()


def test_the_convention_is_the_teachers() -> None:
    student, _ = from_teacher(tiny_network(channels=16, convention="edm", time_scale=1.0), tiny_config(channels=8))
    assert (student.network.config.convention, student.network.config.time_scale) == ("edm", 1)


def widened(config: FlowNetworkConfig, factor: float) -> FlowNetworkConfig:
    sizes = [name for name in ("channels", "width") if name in type(config).model_fields]
    return config.model_copy(update={name: round(factor * getattr(config, name)) for name in sizes})


def assert_starts_as_its_teacher(teacher: FlowNetwork, config: FlowNetworkConfig, tolerance: float) -> None:
    student, found = from_teacher(teacher, config)
    assert found.widened > 0
    assert found.new == []
    x, t = torch.randn(8, *config.shape, generator=torch.Generator().manual_seed(0)), torch.linspace(0.2, 0.9, 8)
    label = torch.arange(8) % config.num_classes if config.num_classes else None
    euler_step = from_teacher(teacher)[0].eval()(x, t, 0.5 * t, label)
    torch.testing.assert_close(student.eval()(x, t, 0.5 * t, label), euler_step, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_wider_student_of_any_family_starts_as_its_teachers_euler_step(
    config: FlowNetworkConfig, factor: float
) -> None:
    # The wider layer norms of an mlp add the same epsilon to a smaller variance.
    tolerance = 1e-3 if isinstance(config, MlpConfig) else 1e-5
    assert_starts_as_its_teacher(shaken(config), widened(config, factor), tolerance)


def test_a_wider_student_keeps_its_teachers_sines_and_cosines() -> None:
    config = tiny_config(time_scale=1000.0)  # so fast that other frequencies could not stand for them
    student, _ = from_teacher(shaken(config), widened(config, 1.5))
    assert student.network.config.num_time_features == config.num_time_features
    assert_starts_as_its_teacher(shaken(config), widened(config, 1.5), 1e-5)


def test_a_wider_student_keeps_the_sizes_of_its_teachers_groups() -> None:
    config = tiny_config(channels=160, channel_mult=(1,))  # 32 groups of 5, where 4 would be enough
    assert_starts_as_its_teacher(shaken(config), widened(config, 1.5), 1e-4)


def test_a_student_that_is_wider_on_one_level_and_narrower_on_another_takes_what_fits() -> None:
    student, found = from_teacher(tiny_network(channels=8), tiny_config(channels=12, channel_mult=(1, 1)))
    assert min(found.cut, found.widened) > 0
    assert torch.isfinite(student(X[:, :, :4, :4], T, 0 * T, None)).all()


def test_old_channels_read_nothing_of_the_new_which_keep_their_own_start() -> None:
    config = tiny_config(channels=8)
    network = networks.build(with_second_time(widened(config, 1.5)))
    start = network.state_dict()["encoder.0.conv1.weight"].clone()
    teacher = shaken(config)
    inherit(network, teacher)
    weight = network.state_dict()["encoder.0.conv1.weight"]
    torch.testing.assert_close(weight[:8, :8], teacher.state_dict()["encoder.0.conv1.weight"])
    assert not weight[:8, 8:].any()
    assert torch.equal(weight[8:], start[8:])


@pytest.mark.parametrize("family", ["ddpm++", "adm", "mlp"])
def test_the_new_channels_learn(family: str) -> None:
    config = FAMILIES[family]
    student, _ = from_teacher(shaken(config), widened(config, 1.5))
    optimizer = torch.optim.SGD(student.requires_grad_(True).parameters(), 0.1)
    x, t = torch.randn(8, *config.shape, generator=torch.Generator().manual_seed(0)), torch.linspace(0.2, 0.9, 8)
    for _ in range(3):
        optimizer.zero_grad()
        student(x, t, 0 * t, None).square().mean().backward()
        optimizer.step()
    last = "layer_out.weight" if family == "mlp" else "conv_out.weight"
    num_old = shaken(config).state_dict()[last].shape[1]
    new = student.network.state_dict()[last].transpose(0, 1)[num_old:]
    assert (new.abs().flatten(1).amax(1) > 0).all()


def test_the_summary_says_how_many_tensors_were_widened() -> None:
    _, found = from_teacher(tiny_network(channels=8), tiny_config(channels=12))
    assert str(found) == f"{found.whole} tensor as they are, {found.widened} widened"
