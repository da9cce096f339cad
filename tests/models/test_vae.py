"""V: the paper's sizes, the network and the loss against NumPy, and that forward samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

import worldmodels as wm
from conftest import make_vae
from worldmodels.models.vae import decode, sample_latent, vae_loss


@pytest.fixture(scope="module")
def vae():
    return make_vae(4)


def frames(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(count, 3, 64, 64)).astype(np.float32))


@pytest.mark.parametrize(("latent_size", "count"), [(32, 4_348_547), (64, 4_446_915)])
def test_parameters_count_what_the_paper_counts(latent_size, count):
    model = wm.ConvVAE(latent_size)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert model.config == {"latent_size": latent_size}


def test_every_stage_has_the_papers_shape(vae):
    shapes = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, out: shapes.append(tuple(out.shape[1:])))
        for layer in vae.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    recon, mu, logvar = vae(frames(2))
    for hook in hooks:
        hook.remove()
    encoder = [(32, 31, 31), (64, 14, 14), (128, 6, 6), (256, 2, 2), (4,), (4,)]
    decoder = [(1024,), (128, 5, 5), (64, 13, 13), (32, 30, 30), (3, 64, 64)]
    assert shapes == encoder + decoder
    assert recon.shape == (2, 3, 64, 64)
    assert mu.shape == logvar.shape == (2, 4)


def convolve(x, layer):
    """(C, H, W) through a 4x4 convolution of stride 2 and relu, in float64."""
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (layer.weight, layer.bias))
    windows = sliding_window_view(x, (4, 4), axis=(1, 2))[:, ::2, ::2]
    return np.maximum(np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None], 0)


def deconvolve(x, layer):
    """(C, H, W) through a transposed convolution of stride 2: every pixel paints a weighted kernel."""
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (layer.weight, layer.bias))
    size, kernel = x.shape[1], weight.shape[2]
    out = np.zeros((weight.shape[1], 2 * (size - 1) + kernel, 2 * (size - 1) + kernel)) + bias[:, None, None]
    for row in range(size):
        for column in range(size):
            painted = np.tensordot(x[:, row, column], weight, axes=1)
            out[:, 2 * row : 2 * row + kernel, 2 * column : 2 * column + kernel] += painted
    return out


def affine(x, layer):
    return layer.weight.detach().numpy().astype(np.float64) @ x + layer.bias.detach().numpy()


@torch.no_grad()
def test_encoder_and_decoder_equal_numpy():
    vae = make_vae(4)
    for parameter in vae.parameters():
        if parameter.ndim == 1:  # biases start at zero: give them something to say
            parameter.copy_(torch.linspace(-0.2, 0.2, len(parameter)))
    frame = frames(1)
    x = frame[0].numpy().astype(np.float64)
    for layer in vae.encoder:
        x = convolve(x, layer) if isinstance(layer, nn.Conv2d) else x
    mu, logvar = vae.encode(frame)
    np.testing.assert_allclose(mu[0], affine(x.ravel(), vae.mu), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logvar[0], affine(x.ravel(), vae.logvar), rtol=1e-4, atol=1e-5)

    z = np.array([0.5, -1.0, 2.0, 0.1])
    layers = [layer for layer in vae.decoder if isinstance(layer, nn.ConvTranspose2d)]
    y = affine(z, vae.decoder[0]).reshape(1024, 1, 1)
    for layer in layers[:-1]:
        y = np.maximum(deconvolve(y, layer), 0)
    y = 1 / (1 + np.exp(-deconvolve(y, layers[-1])))
    got = vae.decode(torch.tensor(z[None], dtype=torch.float32))[0]
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5)


class Plain(nn.Module):
    """The decoder with torch's own transposed convolutions."""

    def __init__(self, decoder):
        super().__init__()
        self.layers = [
            nn.ConvTranspose2d(layer.in_channels, layer.out_channels, layer.kernel_size, stride=2)
            if isinstance(layer, nn.ConvTranspose2d)
            else layer
            for layer in decoder
        ]
        for own, layer in zip(self.layers, decoder, strict=True):
            own.load_state_dict(layer.state_dict())

    def forward(self, z):
        for layer in self.layers:
            z = layer(z)
        return z


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_fast_transposed_convolutions_equal_those_of_torch(precision, layout):
    """Outputs, and the gradients of z and of every weight and bias."""
    vae = make_vae(4)
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(-0.2, 0.2, len(parameter)))
    plain = Plain(vae.decoder)
    vae.to(memory_format=layout)
    z, target = torch.randn(6, 4), torch.rand(6, 3, 64, 64)
    found = []
    for decoder in (vae.decoder, plain):
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = decoder(x)
        assert out.dtype == precision
        (out.float() - target).square().sum().backward()
        layers = decoder.layers if decoder is plain else decoder
        found.append([out.float(), x.grad, *(p.grad.clone() for layer in layers for p in layer.parameters())])
        for layer in layers:
            layer.zero_grad()
    assert len(found[0]) == 2 + 10
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < (1e-5 if precision == torch.float32 else 0.05) * other.norm()


@torch.no_grad()
def test_forward_samples(vae):
    x = frames(2)
    torch.manual_seed(3)
    first, mu, logvar = vae(x)
    second, mu_again, _ = vae(x)
    torch.manual_seed(3)
    repeated, _, _ = vae(x)
    assert torch.equal(mu, mu_again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, vae.decode(mu))
    assert torch.equal(first, repeated)
    torch.manual_seed(3)
    assert torch.equal(first, vae.decode(sample_latent(mu, logvar)))


def test_sampled_latents_have_the_mean_and_the_spread():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 2.0])
    z = sample_latent(mu.expand(40_000, 2), logvar.expand(40_000, 2)).numpy()
    np.testing.assert_allclose(z.mean(axis=0), [1, -3], atol=5 * np.e / 200)
    np.testing.assert_allclose(z.std(axis=0), [1, np.e], rtol=0.02)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("tolerance", "weight", "quartic"), [(0.5, 1.0, 0.0), (0.5, 0.25, 0.0), (0.0, 1.0, 7.0), (3.0, 2.0, 0.1)]
)
def test_loss_equals_numpy(tolerance, weight, quartic):
    rng = np.random.default_rng(0)
    x, recon = rng.uniform(size=(2, 3, 3, 64, 64))
    mu, logvar = rng.normal(size=(2, 3, 5))
    mu[0], logvar[0] = 0.1, 0.0  # a frame whose KL is under the tolerance
    error = np.mean([((recon[b] - x[b]) ** 2).sum() for b in range(3)])
    kl = [sum((m * m + np.exp(v) - 1 - v) / 2 for m, v in zip(mu[b], logvar[b], strict=True)) for b in range(3)]
    assert kl[0] < 0.5 * 5 < kl[1]
    fourth = np.mean([((recon[b] - x[b]) ** 4).sum() for b in range(3)])
    expected = error + weight * np.mean([max(k, tolerance * 5) for k in kl]) + quartic * fourth

    tensors = (torch.tensor(array, dtype=torch.float32) for array in (recon, x, mu, logvar))
    loss, squared_error, got_kl = vae_loss(*tensors, kl_tolerance=tolerance, kl_weight=weight, quartic_weight=quartic)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert squared_error.item() == pytest.approx(error, rel=1e-5)
    assert got_kl.item() == pytest.approx(np.mean(kl), rel=1e-5)


def test_kl_under_the_tolerance_has_no_gradient():
    x = torch.zeros(2, 3, 64, 64)
    mu = torch.tensor([[0.1, 0.1], [2.0, 2.0]], requires_grad=True)
    vae_loss(x, x, mu, torch.zeros(2, 2))[0].backward()
    assert torch.equal(mu.grad[0], torch.zeros(2))
    assert torch.allclose(mu.grad[1], torch.full((2,), 1.0))  # d(mu^2 / 2) / dmu, over the batch of two


def test_pictures_are_rounded_bytes(vae):
    z = np.random.default_rng(0).normal(size=(259, 4)).astype(np.float32)
    pictures = decode(vae, z)
    assert pictures.shape == (259, 64, 64, 3)
    assert pictures.dtype == np.uint8
    with torch.inference_mode():
        values = vae.decode(torch.from_numpy(z[[0, 258]])).numpy().transpose(0, 2, 3, 1)
    assert np.abs(pictures[[0, 258]] - 255 * values).max() <= 0.501


@pytest.mark.parametrize("latent_size", [0, -1, 2.0, True, "4"])
def test_bad_latent_size_is_named(latent_size):
    with pytest.raises(ValueError, match=r"^latent_size: expected an integer of at least 1, got "):
        wm.ConvVAE(latent_size)


@pytest.mark.parametrize("x", [torch.zeros(1, 64, 64, 3), torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64).byte()])
def test_bad_frames_are_named(vae, x):
    with pytest.raises(ValueError, match=r"x: expected \(B, 3, 64, 64\) float32"):
        vae.encode(x)


@pytest.mark.parametrize("z", [torch.zeros(4), torch.zeros(2, 5)])
def test_bad_latents_are_named(vae, z):
    with pytest.raises(ValueError, match=r"z: expected \(B, 4\), got"):
        vae.decode(z)


def test_an_untrained_output_begins_at_a_colour():
    model = wm.ConvVAE(4)
    model.init_output(np.array([1.0, 0.5, 0.2]))
    with torch.no_grad():
        model.decoder[-2].weight.zero_()
        shown = model.decode(torch.randn(2, 4))
    np.testing.assert_allclose(shown[1, :, 7, 40], [0.95, 0.5, 0.2], atol=1e-6)  # clipped, or its gradient vanishes
    assert shown.std(dim=(0, 2, 3)).max() < 1e-6
