"""spad against the numbers recorded from the original code, level by level."""

import numpy as np
import pytest
import torch

import parity
from spad.attention import DenseMask
from spad.model.processors import ViewConditioning


@pytest.fixture(scope="module")
def golden(shared_dir) -> parity.Golden:
    return parity.Golden(shared_dir / "golden")


@pytest.mark.parametrize("rows", parity.ALL, ids=lambda rows: rows.__name__)
def test_equals_the_original(golden, rows):
    wrong = [row for row in rows(golden) if not row.error <= row.bound]
    assert not wrong


def test_a_token_that_sees_nothing_harms_no_other(golden):
    """The release gives such a token the mean of all; its masks never hold one, nor do ours."""
    recorded, (masks, _) = golden.arrays("attention"), parity.two_objects(golden)
    mask = masks[64].dense().clone()
    mask[0, :4] = False
    block = parity.transformer_block(golden)
    views = ViewConditioning(2, masks={64: DenseMask(mask, 2)})
    with torch.no_grad():
        hidden = block.attn1(recorded["block_x_8"].flatten(0, 1), views=views).view(2, 128, 64)
    expected = recorded["attn1_y_8_fullrow_masked"]
    torch.testing.assert_close(hidden[0, 4:], expected[0, 4:])
    torch.testing.assert_close(hidden[1], expected[1])


@pytest.mark.parametrize("name", ["spad_two_views", "spad_four_views"])
def test_full_size_keys_and_shapes_are_all_used(golden, name):
    """On tensors without content: every one of the 1,835 has its place."""
    from spad.hub.convert import released_parts
    from spad.hub.original_layout import IGNORED

    facts = golden.facts(f"state_dict_{name}")
    dtypes = {"float32": torch.float32, "int32": torch.int32}
    state = {
        key: torch.empty(entry["shape"], dtype=dtypes[entry["dtype"]], device="meta")
        for key, entry in facts["keys"].items()
    }
    unet, vae, text_encoder = released_parts(state, "ema")
    assert unet.config.camera_intrinsics == (name == "spad_four_views")
    assert unet.config.camera_vector == ("absolute" if name == "spad_four_views" else "relative")
    millions = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (unet, vae, text_encoder)]
    cc_projection = unet.camera_embedding.linear_1.in_features * 1280 / 1e6 + 1.64096
    assert np.allclose(millions, [859.6 + cc_projection, 83.7, 123.1], atol=0.1)
    assert not IGNORED & {key for key in state if key.startswith("model.diffusion_model")}
