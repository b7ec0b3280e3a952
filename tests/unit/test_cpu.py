"""Cores, threads and memory of a process."""

import pytest
import torch

from marl.cpu import onednn_matmul


@pytest.mark.parametrize("shape", [(64, 64, 64), (512, 300, 64), (64, 512, 17)])
def test_quick_products_keep_the_precision_of_float32_and_gradients(shape: tuple[int, int, int]):
    rows, inner, columns = shape
    left = torch.randn(rows, inner, requires_grad=True)
    right = torch.randn(inner, columns, requires_grad=True)
    with onednn_matmul(torch.device("cpu")):
        product = left @ right
        product.sum().backward()
    assert left.grad is not None
    exact = left.detach().double() @ right.detach().double()
    torch.testing.assert_close(product.double(), exact, rtol=0.0, atol=1e-5 * float(exact.abs().max()))
    expected = right.detach().double().sum(1).expand_as(left)
    torch.testing.assert_close(left.grad.double(), expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


def test_the_setting_is_put_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="shapes"), onednn_matmul(torch.device("cpu")):
        torch.randn(64, 64) @ torch.randn(63, 64)
    assert torch.get_float32_matmul_precision() == before
