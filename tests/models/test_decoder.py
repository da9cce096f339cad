"""V's decoder in the native core, folded, beside PyTorch's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import make_vae
from worldmodels.models.decoder import Decoder, compact_weights, folded_decoder
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, save_tensors
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels

#: Largest distance of a byte from 255 times the brightness in float64: half of rounding, and float32's error.
TOLERANCE = 0.5 + 2e-3


@pytest.fixture(autouse=True)
def level():
    before = simd_level()
    yield
    set_simd_level(before)


def random_vae(latent, seed=0):
    """A V whose frames have every brightness, with biases that are not zero."""
    torch.manual_seed(seed)
    model = ConvVAE(latent)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def latents(count, size, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size), np.float32)


@torch.inference_mode()
def in_double(vae, z):
    model = ConvVAE(vae.latent_size).double()
    model.load_state_dict(vae.state_dict())
    return 255 * model.decode(torch.from_numpy(z).double()).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", simd_levels())
@pytest.mark.parametrize(("latent", "count", "threads"), [(1, 1, 1), (2, 3, 2), (31, 2, 1), (32, 5, 3), (64, 2, 8)])
def test_every_level_decodes_as_pytorch_does(name, latent, count, threads):
    set_simd_level(name)
    vae, z = random_vae(latent), 3 * latents(count, latent)
    expected = in_double(vae, z)
    assert expected.min() < 10 and expected.max() > 245
    found = Decoder(vae, num_threads=threads)(z)
    assert found.shape == (count, 64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_the_folded_decoder_is_the_same_function(seed):
    vae, z = random_vae(64, seed), latents(4, 64, seed)
    layers = folded_decoder(vae)
    assert sum(weight.size + bias.size for weight, bias in layers) == 490_083
    (point, offset), *others = ((torch.from_numpy(part).double() for part in layer) for layer in layers)
    x = torch.relu(torch.from_numpy(z).double() @ point.T + offset).reshape(-1, 5, 5, 128).permute(0, 3, 1, 2)
    for number, (weight, bias) in enumerate(others):
        x = F.conv_transpose2d(x, weight, bias, stride=2)
        x = torch.sigmoid(x) if number == 2 else torch.relu(x)
    np.testing.assert_allclose(255 * x.permute(0, 2, 3, 1).numpy(), in_double(vae, z), atol=255 * 1e-6)


@pytest.mark.parametrize("name", simd_levels())
def test_a_frame_does_not_depend_on_the_others(name):
    set_simd_level(name)
    vae, z = random_vae(8), latents(9, 8)
    whole = Decoder(vae, num_threads=3)(z)
    decoder = Decoder(vae, num_threads=1)
    for rows in (slice(0, 1), slice(3, 4), slice(2, 9), slice(0, 9, 2)):
        np.testing.assert_array_equal(decoder(z[rows]), whole[rows])


@pytest.mark.parametrize("name", simd_levels())
def test_overflow_gives_some_frame(name):
    set_simd_level(name)
    z = np.full((1, 8), np.finfo(np.float32).max)
    assert Decoder(random_vae(8))(z).shape == (1, 64, 64, 3)


def test_levels_with_fused_products_give_the_same_bits():
    vae, z = random_vae(16), latents(3, 16)
    frames = []
    for name in simd_levels()[1:]:
        set_simd_level(name)
        frames.append(Decoder(vae, num_threads=1)(z))
    for other in frames[1:]:
        np.testing.assert_array_equal(other, frames[0])


class OtherVAE(ConvVAE):
    """A V with a decoder of its own."""

    def decode(self, z):
        return torch.zeros(len(z), 3, 64, 64) + 0.2


def test_a_v_of_ones_own_is_asked():
    assert (Decoder(OtherVAE(3))(latents(2, 3)) == 51).all()


def test_copies_and_pickles_decode_alike():
    decoder, z = Decoder(make_vae(5)), latents(2, 5)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        np.testing.assert_array_equal(other(z), decoder(z))


def test_what_does_not_fit_is_named():
    decoder = Decoder(make_vae(4))
    with pytest.raises(ValueError, match=r"^z: expected \(B, 4\) float32, got \(2, 5\) float32"):
        decoder(latents(2, 5))
    with pytest.raises(ValueError, match=r"^z: expected \(B, 4\) float32, got \(0, 4\) float32"):
        decoder(latents(0, 4))
    with pytest.raises(ValueError, match=r"^z: expected finite numbers, got nan"):
        decoder(np.full((1, 4), np.nan, np.float32))
    with pytest.raises(TypeError, match=r"^vae: expected a ConvVAE, got None"):
        Decoder(None)
    vae = make_vae(4)
    with torch.no_grad():
        vae.decoder[2].bias[3] = torch.inf
    with pytest.raises(ValueError, match=r"^point_bias: expected finite numbers, got inf"):
        Decoder(vae)


@pytest.mark.parametrize("latent", [1, 32, 1023, 1024])
def test_compact_weights_are_the_same_function(tmp_path, latent):
    vae, path = random_vae(latent), tmp_path / "vae.safetensors"
    weights = compact_weights(vae)
    save_tensors(path, weights, {"model": "ConvVAE", "config": vae.config})
    found = load_model(path, ConvVAE)
    units = min(latent + 1, 1024)
    assert weights["decoder.0.weight"].shape == (units, latent) and found.decoder[0].weight.shape == (1024, latent)
    z = latents(3, latent)
    np.testing.assert_allclose(in_double(found, z), in_double(vae, z), atol=2e-3)
    for name, tensor in vae.state_dict().items():
        assert name.startswith("decoder") or torch.equal(found.state_dict()[name], tensor), name
    again = compact_weights(found)
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_file_without_units_of_the_decoder_is_refused(tmp_path):
    vae, path = random_vae(4), tmp_path / "vae.safetensors"
    weights = compact_weights(vae)
    for name in ("decoder.0.weight", "decoder.2.weight"):
        few = {**weights, name: weights[name][:-1]}
        save_tensors(path, few, {"model": "ConvVAE", "config": vae.config})
        with pytest.raises(ValueError, match="the weights do not fit their config"):
            load_model(path, ConvVAE)
