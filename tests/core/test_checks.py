import numpy as np
import pytest
import torch

from tokenry.core.checks import check_choice, check_device, check_finite, check_int, check_mask, check_range, check_shape
from tokenry.errors import MissingDependencyError, UnsupportedModelError, optional


def test_shapes_are_matched_by_name_and_number():
    assert check_shape("x", torch.zeros(2, 3, 4), "B N 4") == {"B": 2, "N": 3}
    with pytest.raises(ValueError, match=r"x must have shape \[B, N\], got \[2, 3, 4\]"):
        check_shape("x", torch.zeros(2, 3, 4), "B N")
    with pytest.raises(ValueError, match=r"x must have shape \[N, N\]"):
        check_shape("x", torch.zeros(2, 3), "N N")
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        check_shape("x", [1], "N")


def test_numbers():
    assert check_int("n", 3, 1, 5) == 3
    assert check_range("r", 1, 0.0, 1.0) == 1.0
    for call in (
        lambda: check_int("n", 0, 1),
        lambda: check_range("n", 0.0, 0.0, low_open=True),
        lambda: check_choice("n", "x", ("a",)),
    ):
        with pytest.raises(ValueError, match=r"^n must be"):
            call()
    for call in (
        lambda: check_int("n", True),
        lambda: check_int("n", 1.0),
        lambda: check_range("n", "1"),
        lambda: check_range("n", True),
    ):
        with pytest.raises(TypeError, match=r"^n must be"):
            call()
    with pytest.raises(ValueError, match="n must be a finite number, got nan"):
        check_range("n", float("nan"))


def test_numbers_of_numpy_are_numbers():
    assert check_int("k", np.int64(3), 1) == 3
    assert type(check_int("k", np.uint8(3))) is int
    assert check_range("p", np.float32(0.5), 0, 1) == 0.5
    for wrong in (np.float32(3.0), np.bool_(True), np.array(3)):
        with pytest.raises(TypeError, match="k must be an int"):
            check_int("k", wrong)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        check_int("k", np.int64(0), 1)


def test_tensors():
    with pytest.raises(ValueError, match=r"x must be finite, got nan at \[1\] \(1 in all\)"):
        check_finite("x", torch.tensor([0.0, float("nan")]))
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        check_mask("mask", torch.ones(2), (2,))
    with pytest.raises(ValueError, match="x must be on the device of y"):
        check_device("x", torch.zeros(1, device="meta"), "y", torch.zeros(1))


def test_errors_say_what_to_do():
    with pytest.raises(MissingDependencyError, match=r"no_such_package is needed .* pip install 'tokenry\[lab\]'"):
        optional("no_such_package", "lab")
    assert "int is not supported (reason); supported: A, B" == str(UnsupportedModelError.of(1, ("A", "B"), reason="reason"))
    near = str(UnsupportedModelError.of(1, ("float", "ints"), guide="page"))
    assert near == "int is not supported (the nearest that is: ints; to add it: page); supported: float, ints"
    assert "int is not supported (to add it: page); supported: A" == str(UnsupportedModelError.of(1, ("A",), guide="page"))
    assert "int is not supported (reason); supported: ints" == str(
        UnsupportedModelError.of(1, ("ints",), reason="reason", guide="page")
    )
