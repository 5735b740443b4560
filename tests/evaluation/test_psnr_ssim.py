"""PSNR and SSIM: laws, and slow twins."""

import math

import pytest
import torch

from spad.evaluation.psnr_ssim import LARGEST_PSNR, psnr, ssim, ssim_map

PICTURES = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def noise(strength: float) -> torch.Tensor:
    return strength * torch.randn(PICTURES.shape, generator=torch.Generator().manual_seed(1))


def test_equal_pictures_are_as_alike_as_can_be():
    assert psnr(PICTURES, PICTURES).tolist() == [LARGEST_PSNR] * 3
    torch.testing.assert_close(ssim(PICTURES, PICTURES), torch.ones(3))


def test_psnr_is_the_logarithm_of_the_mean_square():
    torch.testing.assert_close(psnr(PICTURES, PICTURES + 0.1), torch.full((3,), 20.0))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_more_noise_is_less_alike_and_order_does_not_matter(measure):
    scores = [measure(PICTURES, PICTURES + noise(s)) for s in (0.01, 0.05, 0.2)]
    assert (scores[0] > scores[1]).all() and (scores[1] > scores[2]).all()
    other = PICTURES + noise(0.2)
    torch.testing.assert_close(measure(PICTURES, other), measure(other, PICTURES))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_only_chosen_pixels_count(measure):
    where = torch.zeros(3, 20, 24)
    where[:, 8:, :] = 1
    spoiled = PICTURES.clone()
    # The window of SSIM reaches five pixels further.
    spoiled[:, :, :3] = 0
    torch.testing.assert_close(measure(PICTURES, spoiled, where), measure(PICTURES, PICTURES))
    assert measure(PICTURES, PICTURES, torch.zeros(3, 20, 24)).isnan().all()


def test_ssim_is_its_formula_at_a_pixel():
    other = (PICTURES + noise(0.1)).double()
    one = PICTURES.double()
    row, column = 9, 11
    window = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]).double()
    window = torch.outer(window, window) / window.sum() ** 2
    expected = []
    for channel in range(3):
        a, b = (x[0, channel, row - 5 : row + 6, column - 5 : column + 6] for x in (one, other))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        both = (window * (a - mean_a) * (b - mean_b)).sum()
        expected.append(
            (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )  # fmt: skip
    found = ssim_map(one, other)[0, row, column]
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_pictures_smaller_than_the_window_have_a_score():
    tiny = PICTURES[..., :4, :4]
    assert ssim(tiny, tiny.flip(-1)).isfinite().all()
