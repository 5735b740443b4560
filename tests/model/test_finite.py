"""Weights are finite, before and after they become another type."""

import math

import pytest
import torch
from torch import nn

from spad.model import PatchAutoencoder
from spad.model.finite import check_finite, convert_weights, is_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_wrong_number_is_found(dtype, value):
    numbers = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(numbers) and is_finite(numbers.T) and is_finite(numbers[:0])
    numbers[3, 2] = value
    assert not is_finite(numbers) and not is_finite(numbers.T)


def test_a_module_is_named_with_its_weight():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    check_finite(module, "the module")
    module[1].running_mean[1] = math.nan
    with pytest.raises(ValueError, match=r"weights of the module, got .* in 1\.running_mean"):
        check_finite(module, "the module")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, torch.float16, "within the range of torch.float16, got more in weight"),
        (-1e39, torch.float32, "within the range of torch.float32"),
        (math.inf, torch.float16, "expected finite weights"),
        (7e4, torch.bfloat16, None),
        (1e-30, torch.float16, None),
    ],
)
def test_numbers_too_large_for_a_type_are_refused(value, dtype, message):
    module = nn.Linear(2, 3).double()
    module.weight.data[0, 1] = value
    if message is None:
        convert_weights(module, dtype, "it")
        assert module.weight.dtype == dtype
    else:
        with pytest.raises(ValueError, match=message):
            convert_weights(module, dtype, "it")


def test_a_conversion_is_silent(caplog):
    vae = PatchAutoencoder(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4)
    convert_weights(vae, torch.float16, "it")
    assert vae.dtype == torch.float16 and not caplog.messages
