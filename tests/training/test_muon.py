"""Muon moves matrices along the orthogonal factor of their gradient, and the rest as AdamW does."""

import pytest
import torch
from torch import nn

from spad.training.muon import Muon, is_matrix, orthogonal


def plain_newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """As it is published: every turn multiplies the matrix itself."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(48, 48), (32, 200), (200, 32), (64, 96)])
def test_singular_vectors_stay_and_singular_values_become_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    matrices[1] *= 1e-6
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        seen = u.mT @ found.double() @ v.mT
        values = seen.diagonal()
        assert values.min() > 0.3 and values.max() < 1.3
        assert values.sort().values[2:].min() > 0.6
        assert (seen - torch.diag(values)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(48, 48), (32, 200), (64, 96)])
def test_gathered_factors_give_what_the_plain_iteration_gives(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        orthogonal(matrix[None])[0], plain_newton_schulz(matrix), atol=1e-4, rtol=1e-4
    )


def test_no_gradient_moves_nothing():
    assert not orthogonal(torch.zeros(2, 20, 30)).any()


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(32, 32, 3),
            "conv": nn.Conv2d(32, 48, 3),
            "linear": nn.Linear(48, 32),
            "narrow": nn.Linear(48, 4),
            "time_embedding": nn.Linear(32, 32),
        }
    )


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_which_parameters_are_matrices():
    named = dict(layers().named_parameters())
    assert [n for n, p in named.items() if is_matrix(n, p)] == ["conv.weight", "linear.weight"]


def test_all_but_matrices_learn_as_with_adamw():
    one, other = layers(), layers()
    options = {"betas": (0.9, 0.99), "weight_decay": 0.1}
    muon = Muon(dict(one.named_parameters()), 1e-2, **options)
    adamw = torch.optim.AdamW(other.parameters(), 1e-2, **options)
    for seed in range(3):
        for module, optimizer in ((one, muon), (other, adamw)):
            give_gradients(module, seed)
            optimizer.step()
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        if is_matrix(name, parameter):
            assert not torch.equal(parameter, others[name])
        else:
            assert torch.equal(parameter, others[name]), name


def test_a_step_of_a_matrix_is_nesterovs_and_as_large_as_one_of_adamw():
    module = layers()
    muon = Muon(dict(module.named_parameters()), 1e-2, weight_decay=0.1)
    weight, average = module["conv"].weight, torch.zeros(48, 32, 3, 3)
    for seed in range(3):
        before = weight.detach().clone()
        give_gradients(module, seed)
        average = 0.95 * average + 0.05 * weight.grad
        direction = (0.05 * weight.grad + 0.95 * average).flatten(1)
        step = 1e-2 * 0.2 * 288**0.5 * orthogonal(direction[None])[0]
        muon.step()
        expected = before * (1 - 1e-2 * 0.1) - step.view_as(before)
        torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)
        # AdamW's steps are of about 0.2 learning rates: the square root of their mean square.
        assert 1e-3 < step.square().mean().sqrt() < 4e-3


def test_saved_and_loaded_it_goes_on_as_if_it_had_not_stopped():
    whole, stopped = layers(), layers()
    muon = Muon(dict(whole.named_parameters()), 1e-2)
    first = Muon(dict(stopped.named_parameters()), 1e-2)
    for module, optimizer in ((whole, muon), (stopped, first)):
        give_gradients(module, 0)
        optimizer.step()
    second = Muon(dict(stopped.named_parameters()), 1e-2)
    second.load_state_dict(first.state_dict())
    for module, optimizer in ((whole, muon), (stopped, second)):
        give_gradients(module, 1)
        optimizer.step()
    for expected, found in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_frozen_and_unused_parameters_stay():
    module = layers()
    muon = Muon({n: p for n, p in module.named_parameters() if n.startswith("linear")}, 1e-2)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    module["linear"].bias.grad = torch.ones(32)
    muon.step()
    changed = [n for n, p in module.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["linear.bias"]
