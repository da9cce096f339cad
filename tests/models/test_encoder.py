"""V's encoder in the native core, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_vae
from worldmodels import _core
from worldmodels.models.device import computes_in_bfloat16
from worldmodels.models.encoder import Encoder
from worldmodels.models.vae import ConvVAE
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(not computes_in_bfloat16(CPU), reason="this CPU does not compute in bfloat16")


@pytest.fixture(autouse=True)
def level():
    before = simd_level()
    yield
    set_simd_level(before)


@pytest.fixture(scope="module")
def vae():
    """Biases that are not zero, as after training."""
    torch.manual_seed(2)
    model = ConvVAE(33)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@torch.inference_mode()
def in_double(vae, pictures):
    model = ConvVAE(vae.latent_size).double()
    model.load_state_dict(vae.state_dict())
    return [part.numpy() for part in model.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255)]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("name", simd_levels())
@pytest.mark.parametrize("threads", [1, 10])  # in blocks of frames, and each frame alone
def test_every_level_encodes_as_pytorch_does(vae, name, threads):
    set_simd_level(name)
    pictures = frames(37)
    expected = in_double(vae, pictures)
    for found, part in zip(Encoder(vae, CPU, num_threads=threads)(pictures), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, part, atol=3e-6 * np.abs(part).max())


@pytest.mark.parametrize("name", simd_levels())
@pytest.mark.parametrize("latent", range(1, 8))
def test_any_number_of_latents(latent, name):
    """The last panel of twelve has 2, 4, 6, 8, 10 or 12 rows; the block of the last four frames, one vector."""
    set_simd_level(name)
    model, pictures = make_vae(latent), frames(36)
    for found, part in zip(Encoder(model, CPU, num_threads=1)(pictures), in_double(model, pictures), strict=True):
        np.testing.assert_allclose(found, part, atol=3e-6 * np.abs(part).max())


@pytest.mark.parametrize("name", simd_levels())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_frame_does_not_depend_on_the_others(vae, threads, name):
    set_simd_level(name)
    pictures = frames(70)
    pictures[1], pictures[4] = 0, 255
    whole = Encoder(vae, CPU, num_threads=1)(pictures)
    encoder = Encoder(vae, CPU, num_threads=threads)
    for rows in (slice(0, 1), slice(1, 2), slice(3, 12), slice(60, 70), slice(0, 33), slice(0, 70), slice(0, 70, 3)):
        same(encoder(pictures[rows]), [part[rows] for part in whole])


class OtherVAE(ConvVAE):
    """A V with an encoder of its own."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        return mu + 1, logvar


def test_a_v_of_ones_own_is_asked(vae):
    model = OtherVAE(33)
    model.load_state_dict(vae.state_dict())
    pictures = frames(5)
    mu, logvar = Encoder(model, CPU, block=3)(pictures)
    expected = in_double(vae, pictures)
    np.testing.assert_allclose(mu, expected[0] + 1, atol=1e-4)
    np.testing.assert_allclose(logvar, expected[1], atol=1e-4)
    np.testing.assert_array_equal(Encoder(model, CPU, block=3)(pictures[4:])[0], mu[4:])


@needs_bfloat16
def test_bfloat16_is_near():
    model, pictures = make_vae(8), frames(9)
    exact, near = Encoder(model, CPU)(pictures), Encoder(model, CPU, "bfloat16")(pictures)
    assert 0 < np.abs(exact[0] - near[0]).max() < 0.05 * np.abs(exact[0]).max()


def test_what_does_not_fit_is_named(vae):
    encoder = Encoder(vae, CPU)
    with pytest.raises(ValueError, match=r"^frames: expected \(B, 64, 64, 3\) uint8, got \(2, 64, 64, 3\) float32"):
        encoder(frames(2).astype(np.float32))
    with pytest.raises(ValueError, match=r"^frames: expected \(B, 64, 64, 3\) uint8, got \(0, 64, 64, 3\)"):
        encoder(frames(0))
    with pytest.raises(ValueError, match=r"^frames: expected"):
        encoder(frames(2)[:, :63])
    broken = make_vae(4)
    broken.mu.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^mu: expected finite numbers, got nan"):
        Encoder(broken, CPU)
    with pytest.raises(ValueError, match=r"^weights, biases: expected 4 of each, got 0 and 0"):
        _core.Encoder([], [], *[np.zeros((1, 1024), np.float32)] * 4)
