import pytest

from eval.report.words import (
    CURVES,
    command_without_paths,
    config_without_paths,
    curve_title,
    loss_names,
    without_paths,
)
from trainer.distillation import compared, terms
from trainer.distillation.terms import BaseTerm
from trainer.train import GRAD_NORM


def losses() -> set[str]:
    classes = [each for module in (terms, compared) for each in vars(module).values() if isinstance(each, type)]
    fields = [each.model_fields["loss"].default for each in classes if issubclass(each, BaseTerm)]
    return {name for name in fields if isinstance(name, str)}


def test_every_loss_has_words() -> None:
    assert losses() | {GRAD_NORM, "loss", "images_per_second", "memory_bytes"} == set(CURVES)


def test_a_curve_is_called_by_its_loss_and_its_name_in_the_log() -> None:
    config = {"recipe": {"phases": [{"terms": [{"loss": "velocity", "name": "far"}, {"loss": "output", "name": ""}]}]}}
    assert loss_names(config)["far"] == "velocity"
    assert curve_title("far", loss_names(config)) == "The teacher's velocity (far)"
    assert curve_title("output", loss_names(config)) == "One jump from noise to the sample (output)"
    assert curve_title("of a later version", {}) == "of a later version"
    assert loss_names({}) == loss_names({"recipe": "anchored"}) == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("put it into /home/me/.cache/traflow/w.pt: now", "put it into w.pt: now"),
        ("~/runs/a and ../runs/b, ./c/d", "a and b, d"),
        ("'s3://bucket/runs/a' (gs://b/c/d)", "'a' (d)"),
        ("1,235 images/s; ViT-L/14; and/or; 1/2; </script>", "1,235 images/s; ViT-L/14; and/or; 1/2; </script>"),
        ("cleanfid:cifar10/train/32", "cleanfid:cifar10/train/32"),
    ],
)
def test_of_a_path_in_a_text_its_last_part_stays(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_a_configuration_and_a_command_name_files_and_no_folders() -> None:
    config = {"data": "runs/a/data", "start": "digits", "trainer": {"lr": 0.1}, "images": "hf:ylecun/mnist:train#image"}
    assert config_without_paths(config) == {**config, "data": "data"}
    assert config_without_paths({"phases": [{"name": "/a/b/c", "share": None}]}) == {
        "phases": [{"name": "c", "share": None}]
    }
    command = "torchrun --nproc-per-node 2 -m traflow_pipeline evaluate --config runs/a/evaluate.yaml"
    assert command_without_paths(command).endswith("evaluate --config evaluate.yaml")
