"""PyTorch alone: live modules, saved programs, the thread count of the process."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtimes.base import ArtefactError, RuntimeUnavailable, TensorSpec
from runtimes.pytorch import PytorchRuntime, write_program

X = TensorSpec("x", ("streams", 3), "float32")
Y = TensorSpec("y", ("streams", 3), "float32")
Z = TensorSpec("z", (3,), "float32")


class Echo(nn.Module):
    """Hands back its own input and its own weight, and changes the input afterwards: the worst of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(2)
        return x, self.weight


class Rest(nn.Module):
    def forward(self, first: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return first + rest[0], rest[-1]


def test_results_and_feeds_share_no_memory_with_the_module() -> None:
    module = Echo()
    x = np.ones((2, 3), np.float32)
    with PytorchRuntime.from_module(module, [X], [Y, Z]) as runtime:
        found = runtime.run({"x": x})
    found["z"].fill(9)
    np.testing.assert_array_equal(x, np.ones((2, 3)))
    np.testing.assert_array_equal(found["y"], np.full((2, 3), 2))
    np.testing.assert_array_equal(module.weight.detach().numpy(), np.ones(3))


def test_a_module_that_returns_too_few_tensors_is_an_error() -> None:
    with (
        PytorchRuntime.from_module(Echo(), [X], [Y]) as runtime,
        pytest.raises(RuntimeUnavailable, match="returned a tuple of 2, wanted a tuple of 1"),
    ):
        runtime.run({"x": np.ones((2, 3), np.float32)})


def test_a_module_that_returns_no_tuple_is_an_error() -> None:
    with (
        PytorchRuntime.from_module(nn.Identity(), [X], [Y]) as runtime,
        pytest.raises(RuntimeUnavailable, match="returned Tensor, wanted a tuple of 1"),
    ):
        runtime.run({"x": np.ones((2, 3), np.float32)})


def test_a_module_that_fails_is_an_error_of_this_folder() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x @ x,)

    with (
        PytorchRuntime.from_module(Broken(), [X], [Y]) as runtime,
        pytest.raises(RuntimeUnavailable, match="pytorch: the run failed"),
    ):
        runtime.run({"x": np.ones((2, 3), np.float32)})


def test_threads_are_set_for_the_call_only() -> None:
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            seen.append(torch.get_num_threads())
            return (x,)

    before = torch.get_num_threads()
    with PytorchRuntime.from_module(Watch(), [X], [Y], threads=before + 1) as runtime:
        runtime.run({"x": np.ones((2, 3), np.float32)})
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_forward_of_many_tensors_is_saved_and_read(tmp_path: Path) -> None:
    path = tmp_path / "rest.pt2"
    inputs = [X, TensorSpec("a", ("streams", 3), "float32"), TensorSpec("b", ("parts", 3), "float32")]
    write_program(Rest(), inputs, [Y, TensorSpec("z", ("parts", 3), "float32")], path)
    with PytorchRuntime(path) as runtime:
        feeds = {"x": np.ones((5, 3), np.float32), "a": np.ones((5, 3), np.float32), "b": np.ones((1, 3), np.float32)}
        found = runtime.run(feeds)
        assert dict(runtime.metadata) == {}
    np.testing.assert_array_equal(found["y"], np.full((5, 3), 2))
    np.testing.assert_array_equal(found["z"], np.ones((1, 3)))


def test_a_program_goes_to_a_pt2_file(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"a\.onnx: the file name must end in \.pt2"):
        write_program(Rest(), [X], [Y], tmp_path / "a.onnx")


def test_a_module_that_fixes_a_dynamic_axis_is_not_saved(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x + torch.ones(2, 3),)

    with pytest.raises(ArtefactError, match=r"torch\.export cannot capture the module"):
        write_program(Fixed(), [X], [Y], tmp_path / "fixed.pt2")
    assert not (tmp_path / "fixed.pt2").exists()


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rest.pt2"
    write_program(Rest(), [X, X], [Y, Y], path)
    with zipfile.ZipFile(path) as archive:
        first = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[first.header_offset + 30 + len(first.filename) + first.file_size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="damaged at"):
        PytorchRuntime(path)


def test_a_program_saved_by_other_means_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt2"
    program = torch.export.export(Rest(), (torch.ones(2, 3), torch.ones(2, 3)))
    torch.export.save(program, path)
    with pytest.raises(ArtefactError, match="not a program of write_program"):
        PytorchRuntime(path)
