"""Count what torch is asked to do: on a GPU each operation is a kernel, or several, that the CPU has to launch."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "unflatten", "view", "_unsafe_view", "_reshape_alias", "chunk"),
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    @property
    def num_kernels(self) -> int:
        """The operations that are no mere views."""
        return sum(count for name, count in self.counts.items() if name not in VIEWS)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))
