"""What a call costs, counted: the same on every machine."""

import pytest
import torch

from tokenry.lab.evidence.measure import numbers_moved

A, B = torch.ones(2, 3), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda: A @ B, 6 + 12 + 8),
        (lambda: A + A, 6 + 6 + 6),
        (lambda: A.sum(), 6 + 1),
        (lambda: (A.T.reshape(-1)[1:2], A.unsqueeze(0), A.expand(5, 2, 3)), 6 + 6),  # only the copy of the transpose moves
        (lambda: A.clone().add_(1.0), 6 + 6 + 6 + 6),
        (lambda: torch.matmul(A.expand(2, 2, 3), B), 12 + 24 + 16),  # B is read for each of the two
        (lambda: torch.cat([A, A]), 6 + 6 + 12),
        (lambda: None, 0),
    ],
)
def test_numbers_by_hand(call, numbers):
    assert numbers_moved(call) == numbers


def test_the_count_ends_with_the_call_also_after_an_error():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        numbers_moved(lambda: A @ A)
    assert numbers_moved(lambda: A + A) == 18
