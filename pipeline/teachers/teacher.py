"""Teachers: a velocity field in the convention of `flow.path`, and the fields that define a data set of it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.common.user_code import describe
from pipeline.flow.solver import Velocity
from pipeline.networks import FlowNetwork, Network, lay_out
from pipeline.teachers.classes import TrainedClass, trained_labels

# Latents [B, *shape] to pictures [B, 3, H, W].
Decode = Callable[[Tensor], Tensor]
# (v(label), v(no label), scale) -> the velocity under guidance
Combine = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Teacher:
    """A pre-trained flow over arrays of `shape` with values in about `data_range`.

    `velocity(x, t, label)` takes float32 x [B, *shape], t [B] with 1 = noise and 0 = data, and int64 labels [B] in
    [0, num_classes), or None for an unconditional flow (num_classes = 0); it returns dx/dt [B, *shape]. Whatever was
    given, the field holds an `OwnedVelocity` or one of our own: it may be called by anybody for anything. If it
    `takes_no_label`, it also knows the label -1, "none", which guidance needs. The flow starts at x = t_start * noise,
    noise standard normal, and ends at t_end. A student can start from `network` where there is one.
    """

    name: str
    sha256: str  # of the weights: the teacher's identity in every plan
    velocity: Velocity
    shape: tuple[int, ...]
    num_classes: int = 0
    takes_no_label: bool = False
    t_start: float = 1.0
    t_end: float = 0.0
    data_range: tuple[float, float] = (-1.0, 1.0)
    network: Network | None = None
    weights: str = ""  # for the user: which of a file's weights were loaded
    classes: tuple[TrainedClass, ...] = ()  # those with images in its training, if that is known
    compiled: bool = False  # see `compilation.compile_teacher`
    libraries: str = ""  # besides torch that its velocity is computed by, with their versions
    latents: bool = False  # whether samples are no pictures until they are decoded
    decode: Decode | None = None  # to pictures in `data_range`, not part of any data
    image_size: tuple[int, int] | None = None  # of those pictures in pixels, (height, width)
    shift: float = 1.0  # of the times that its own sampler takes, see `flow.path.shifted`
    combine: Combine | None = None  # both velocities under guidance, where that is not the usual way
    tell_guidance: Callable[[float], object] | None = None  # for a network that is told the scale of its guidance

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The classes that were trained, where some were not; None: all."""
        return trained_labels(self.classes, self.num_classes)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of a sample as it is shown; () where samples are latents without a decoder."""
        if not self.latents:
            return self.shape
        return (3, *self.image_size) if self.decode is not None and self.image_size else ()

    def __post_init__(self) -> None:
        """Raises ValueError if the fields do not define a flow."""
        low, high = self.data_range
        if not self.shape or not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise ValueError(f"shape: wanted positive integers such as (3, 32, 32), got {self.shape!r}")
        if not 1 >= self.t_start > self.t_end >= 0:
            raise ValueError(f"a flow runs from t_start down to t_end in [0, 1], got {self.t_start} and {self.t_end}")
        if not low < high:
            raise ValueError(f"data_range: wanted the least and the largest value, got {self.data_range}")
        if not (isinstance(self.sha256, str) and self.sha256 and self.name.isprintable() and self.name):
            raise ValueError("name and sha256 are texts on one line: the teacher's identity in every data set")
        if not isinstance(self.velocity, FreshVelocity):
            object.__setattr__(self, "velocity", OwnedVelocity(self.velocity, self.name))


class FreshVelocity:
    """A velocity that neither writes into its arguments nor keeps what it returned; ours are such."""


class OwnedVelocity(FreshVelocity):
    """A user's velocity whose caller keeps what it passed, and owns what it got.

    A teacher may write into its arguments, or answer into a buffer that the next call overwrites, as CUDA graphs and
    bound outputs of ONNX Runtime do: it is given copies, and its answer is copied. What it raises, but for a lack of
    memory, is a `WorkFailed` that names `teacher`, the line of the user's that raised it, and what it was given.
    """

    def __init__(self, velocity: Velocity, teacher: str) -> None:
        self.velocity, self.teacher = velocity, teacher

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        try:
            answer = self.velocity(x.clone(), t.clone(), None if label is None else label.clone())
        except (BadInput, WorkFailed, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # it is the user's own code
            called = f"{_called_with(x, t, label)}{_label_hint(label, error)}"
            raise WorkFailed(f"teacher {self.teacher}: {describe(error)} ({called})") from error
        if not isinstance(answer, Tensor) or answer.shape != x.shape:
            got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise WorkFailed(
                f"teacher {self.teacher}: wanted a velocity {list(x.shape)}, got {got} ({_called_with(x, t, label)})"
            )
        return answer.clone()


def _called_with(x: Tensor, t: Tensor, label: Tensor | None) -> str:
    given = {"x": x, "t": t, "label": label}
    return "called with " + ", ".join(f"{name} {list(a.shape)}" for name, a in given.items() if a is not None)


def _label_hint(label: Tensor | None, error: Exception) -> str:
    """What the labels that a user's velocity was given have to do with its `error`, if they may."""
    if label is None:
        is_about_none = re.search("None|label", str(error)) or (isinstance(error, AssertionError) and not str(error))
        return "; label is None: a model with classes needs num_classes in its Teacher" if is_about_none else ""
    if label.is_cuda or not len(label) or not re.search("(?i)index|label|negative", str(error)):
        return ""  # after an assertion on a GPU no tensor can be read
    if label.min() < 0:
        return '; label -1 is "no label", from takes_no_label=True: map it to the null class of the model'
    return f", of {int(label.min())} to {int(label.max())}: does its Teacher have the num_classes of the model?"


def of_network(
    name: str,
    sha256: str,
    network: FlowNetwork,
    device: torch.device,
    weights: str = "",
    classes: tuple[TrainedClass, ...] = (),
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Teacher:
    """The teacher of one of our networks, of any convention."""
    network = lay_out(network.to(device)).requires_grad_(False)
    config = network.config
    return Teacher(
        name=name,
        sha256=sha256,
        velocity=NetworkVelocity(network),
        shape=config.shape,
        num_classes=config.num_classes,
        takes_no_label=config.label_dropout > 0,
        t_start=config.t_start,
        data_range=data_range,
        network=network,
        weights=weights,
        classes=classes,
    )


def guided(teacher: Teacher, scale: float) -> Teacher:
    """`teacher` under classifier-free guidance: v = v(no label) + scale (v(label) - v(no label)).

    Ho & Salimans 2022, arXiv 2207.12598, Eq. 6 with scale = 1 + w; a scale of 1 is the teacher itself. One evaluation
    of the guided teacher evaluates its network on two rows for each sample. A teacher may `combine` the two in another
    way, or be told the scale.

    Raises:
        BadInput: the teacher has no classes, or knows no label -1.
    """
    if scale == 1:
        return teacher
    if teacher.tell_guidance is not None:
        teacher.tell_guidance(scale)
        return teacher
    if not teacher.num_classes or not teacher.takes_no_label:
        wanted = f"teacher {teacher.name}: wanted one that guidance can work on"
        raise BadInput(f"{wanted}; {_lack(teacher)}leave guidance_scale")

    return replace(teacher, velocity=GuidedVelocity(teacher.velocity, scale, teacher.combine or linear_guidance))


def _lack(teacher: Teacher) -> str:
    """What guidance misses in `teacher`; of a function of the user's only its fields are known, not its training."""
    if not isinstance(teacher.velocity, OwnedVelocity):
        return f"it {'was trained without dropping labels' if teacher.num_classes else 'has no classes'}: "
    missing = "takes_no_label=True" if teacher.num_classes else "num_classes, nor takes_no_label=True"
    return f"its Teacher has no {missing}: add that if the model was trained with dropped labels, else "


def linear_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """v(no label) + scale (v(label) - v(no label))."""
    return unconditional + scale * (conditional - unconditional)


class GuidedVelocity(FreshVelocity):
    """`velocity` under classifier-free guidance of `scale`."""

    def __init__(self, velocity: Velocity, scale: float, combine: Combine = linear_guidance) -> None:
        self.velocity, self.scale, self.combine = velocity, scale, combine

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        labels = torch.cat([torch.full_like(label, -1), label])
        without, with_label = self.velocity(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
        return self.combine(with_label, without, self.scale)


@contextmanager
def errors_named_after(teacher: Teacher) -> Iterator[None]:
    """Turn any exception of a teacher that its own velocity did not name into a `WorkFailed` that names it."""
    try:
        yield
    except (BadInput, WorkFailed):
        raise
    except Exception as error:
        raise WorkFailed(f"teacher {teacher.name}: {type(error).__name__}: {one_line(error)}") from error


class NetworkVelocity(nn.Module, FreshVelocity):
    """One of our networks as a velocity field."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        velocity: Tensor = self.network(x, t, label=label)
        return velocity


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest over the names, types, shapes and bytes of the tensors in `state`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
