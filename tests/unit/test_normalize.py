import numpy as np
import pytest
import torch

from marl.errors import ConfigError
from marl.value_norm import RunningMoments, ValueNorm


def test_running_moments_are_those_of_everything_seen():
    rng = np.random.default_rng(0)
    moments = RunningMoments(3, 2)
    seen: list[list[np.ndarray]] = [[], [], []]
    for _ in range(4):
        x = rng.normal(5.0, [1.0, 30.0], size=(6, 7, 3, 2)).astype(np.float32)
        mask = rng.random((6, 7, 3)) < 0.6
        moments.update(torch.as_tensor(x), torch.as_tensor(mask))
        for n in range(3):
            seen[n].append(x[:, :, n][mask[:, :, n]])
    for n in range(3):
        rows = np.concatenate(seen[n]).astype(np.float64)
        np.testing.assert_allclose(moments.mean[n], rows.mean(0), rtol=1e-9)
        np.testing.assert_allclose(moments.variance[n], rows.var(0), rtol=1e-7)
        assert float(moments.count[n, 0]) == len(rows)


def test_running_moments_start_as_the_identity_and_survive_unseen_agents():
    moments = RunningMoments(2, 2)
    x = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
    torch.testing.assert_close(moments(x), x)
    moments.update(x, torch.tensor([[True, False]]))
    torch.testing.assert_close(moments(x)[:, 1], x[:, 1])
    assert torch.isfinite(moments(x)).all()


def test_value_norm_moves_once_an_update_and_is_debiased():
    norm = ValueNorm(0.9)
    mask = torch.tensor([True, True, True, False])
    norm.update(torch.tensor([1.0, 2.0, 3.0, float("nan")]), mask)
    mean, std = norm.moments()
    assert float(mean) == pytest.approx(2.0)
    assert float(std) == pytest.approx(np.sqrt(2 / 3))
    norm.update(torch.tensor([11.0, 12.0, 13.0, 0.0]), mask)
    # Weights .1 and .09, debiased by .19.
    assert float(norm.moments()[0]) == pytest.approx((0.09 * 2 + 0.1 * 12) / 0.19)
    x = torch.tensor([0.5, -3.0])
    torch.testing.assert_close(norm.denormalize(norm.normalize(x)), x)


def test_value_norm_off_is_the_identity():
    norm = ValueNorm(0.0)
    norm.update(torch.tensor([5.0, 9.0]), torch.tensor([True, True]))
    assert float(norm.normalize(torch.tensor(7.0))) == 7.0


def test_wrong_decay_is_refused():
    with pytest.raises(ConfigError, match=r"1\.5"):
        ValueNorm(1.5)
