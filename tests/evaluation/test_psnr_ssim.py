"""PSNR and SSIM: laws, and slow twins."""

import math

import pytest
import torch

from spad.evaluation.psnr_ssim import LARGEST_PSNR, psnr, ssim, ssim_map

IMAGES = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def noise(strength: float) -> torch.Tensor:
    return strength * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))


def test_equal_images_have_the_best_scores():
    assert psnr(IMAGES, IMAGES).tolist() == [LARGEST_PSNR] * 3
    torch.testing.assert_close(ssim(IMAGES, IMAGES), torch.ones(3))


def test_psnr_is_the_logarithm_of_the_mean_square():
    torch.testing.assert_close(psnr(IMAGES, IMAGES + 0.1), torch.full((3,), 20.0))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_more_noise_is_less_alike_and_order_does_not_matter(measure):
    scores = [measure(IMAGES, IMAGES + noise(s)) for s in (0.01, 0.05, 0.2)]
    assert (scores[0] > scores[1]).all() and (scores[1] > scores[2]).all()
    other = IMAGES + noise(0.2)
    torch.testing.assert_close(measure(IMAGES, other), measure(other, IMAGES))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_only_chosen_pixels_count(measure):
    where = torch.zeros(3, 20, 24)
    where[:, 8:, :] = 1
    corrupted = IMAGES.clone()
    # The window of SSIM reaches five pixels further.
    corrupted[:, :, :3] = 0
    torch.testing.assert_close(measure(IMAGES, corrupted, where), measure(IMAGES, IMAGES))
    assert measure(IMAGES, IMAGES, torch.zeros(3, 20, 24)).isnan().all()


def test_ssim_is_its_formula_at_a_pixel():
    other = (IMAGES + noise(0.1)).double()
    one = IMAGES.double()
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


def test_images_smaller_than_the_window_have_a_score():
    tiny = IMAGES[..., :4, :4]
    assert ssim(tiny, tiny.flip(-1)).isfinite().all()
