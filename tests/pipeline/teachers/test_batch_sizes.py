import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.teachers.batch_sizes import double_until_full, measure_batch_sizes
from tests.support.problems import GaussianFlow

CPU = torch.device("cpu")


def test_sizes_are_doubled_until_one_does_not_fit() -> None:
    flow = GaussianFlow()

    def small(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if len(x) > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return flow.velocity(x, t, label)

    found = double_until_full(flow.teacher(), small, 4, CPU)
    assert list(found.rows_per_second) == [32, 64, 128]
    found.check(128)
    with pytest.raises(BadInput, match="batch_size 300 does not fit on this GPU; 128 does"):
        found.check(300)
    assert str(found).startswith("batch sizes: 128 fits, 256 does not; evaluations of one sample per second: 32: ")


def test_a_cpu_is_not_measured() -> None:
    assert measure_batch_sizes(GaussianFlow().teacher(), "fp32", 4, CPU) is None
