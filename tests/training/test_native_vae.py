"""V's native training step against PyTorch's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from worldmodels import ConvVAE, _core
from worldmodels.models.vae import vae_loss
from worldmodels.support.simd import precisions, set_simd_level, simd_level, simd_levels
from worldmodels.training.native_vae import NativeVAE

# (side, channels, filters, kernel): V's eight layers, then others
SHAPES = [
    (64, 3, 32, 4),
    (31, 32, 64, 4),
    (14, 64, 128, 4),
    (6, 128, 256, 4),
    (5, 128, 1024, 5),
    (13, 64, 128, 5),
    (30, 32, 64, 6),
    (64, 3, 32, 6),
    (7, 1, 32, 3),
    (9, 5, 96, 7),
    (12, 96, 32, 5),
    (2, 32, 32, 2),
    (10, 8, 32, 4),  # a line of a window has a whole panel, of several pixels
    (6, 288, 64, 3),
]


@pytest.fixture(params=["float32", "emulated_bfloat16", *(name for name in precisions() if name != "float32")])
def precision(request):
    return request.param


@pytest.fixture(params=simd_levels())
def simd(request):
    before = simd_level()
    set_simd_level(request.param)
    yield request.param
    set_simd_level(before)


def arrays(shape, batch, precision="float32"):
    """The training of a shape, then images, features, weights and both biases, exact in the precision."""
    side, channels, filters, kernel = shape
    rng = np.random.default_rng(0)
    out = (side - kernel) // 2 + 1

    def draw(*size):
        values = torch.from_numpy(rng.normal(size=size).astype(np.float32))
        return (values if precision == "float32" else values.bfloat16().float()).numpy()

    return (
        _core.ConvTraining(side=side, channels=channels, filters=filters, kernel=kernel),
        draw(batch, side, side, channels),
        draw(batch, out, out, filters),
        draw(filters, kernel, kernel, channels),
        draw(filters),
        draw(channels),
    )


def skip_missing(precision, simd):
    if precision == "bfloat16" and simd != "avx512_bf16":
        pytest.skip("this SIMD level has no bfloat16")


def channels_first(x):
    return torch.from_numpy(x).double().permute(0, 3, 1, 2)


def assert_close(found, expected):
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_transpose_agree_with_pytorch(shape, relu, precision, simd):
    skip_missing(precision, simd)
    training, images, features, weights, bias, image_bias = arrays(shape, 3, precision)
    w = channels_first(weights)
    found = training.convolve(images, weights, bias, relu=relu, precision=precision, num_threads=1)
    expected = F.conv2d(channels_first(images), w, torch.from_numpy(bias).double(), stride=2)
    assert_close(found, expected.relu() if relu else expected)
    found = training.transpose(features, weights, image_bias, relu=relu, precision=precision, num_threads=1)
    padding = (shape[0] - shape[3]) % 2  # the last line of pixels is in no window
    expected = F.conv_transpose2d(
        channels_first(features), w, torch.from_numpy(image_bias).double(), stride=2, output_padding=padding
    )
    assert_close(found, expected.relu() if relu else expected)


@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_weights_agrees_with_pytorch(shape, batch, precision, simd):
    skip_missing(precision, simd)
    if batch == 70 and (shape[0] > 32 or simd == "baseline"):
        batch = 5
    training, images, features, weights, *_ = arrays(shape, batch, precision)
    w = channels_first(weights).requires_grad_()
    (F.conv2d(channels_first(images), w, stride=2) * channels_first(features)).sum().backward()
    assert_close(training.weight_gradient(images, features, precision=precision, num_threads=1), w.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_depend_neither_on_threads_nor_on_the_batch(shape, precision):
    skip_missing(precision, simd_level())
    training, images, features, weights, bias, _ = arrays(shape, 35)
    settings = {"precision": precision, "num_threads": 1}
    whole = training.convolve(images, weights, bias, relu=True, **settings)
    back = training.transpose(features, weights, None, relu=False, **settings)
    gradient = training.weight_gradient(images, features, **settings)
    for settings["num_threads"] in (2, 7):
        assert np.array_equal(whole, training.convolve(images, weights, bias, relu=True, **settings))
        assert np.array_equal(back, training.transpose(features, weights, None, relu=False, **settings))
        assert np.array_equal(gradient, training.weight_gradient(images, features, **settings))
    assert np.array_equal(whole[5:6], training.convolve(images[5:6], weights, bias, relu=True, **settings))
    assert np.array_equal(back[5:6], training.transpose(features[5:6], weights, None, relu=False, **settings))


def test_relu_backward_masks_the_gradient_and_sums_the_bias(simd):
    rng = np.random.default_rng(0)
    for channels in (3, 32, 50):
        output = np.maximum(rng.normal(size=(7, 31, 31, channels)), 0).astype(np.float32)
        gradient = rng.normal(size=output.shape).astype(np.float32)
        before, bias = _core.relu_backward(output, gradient, num_threads=1)
        assert np.array_equal(before, np.where(output > 0, gradient, 0))
        np.testing.assert_allclose(bias, before.sum((0, 1, 2), dtype=np.float64), rtol=0, atol=1e-3)
        assert all(map(np.array_equal, (before, bias), _core.relu_backward(output, gradient, num_threads=3)))


def test_nan_is_not_hidden_by_the_relu(simd):
    training, images, features, weights, bias, image_bias = arrays((8, 3, 32, 4), 2)
    images[1, 5, 4, 2] = features[0, 1, 1, 7] = np.nan
    assert np.isnan(training.convolve(images, weights, bias, relu=True, precision="float32", num_threads=1)[1]).any()
    found = training.transpose(features, weights, image_bias, relu=True, precision="float32", num_threads=1)
    assert np.isnan(found[0]).any() and not np.isnan(found[1]).any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFFF8000])
@pytest.mark.parametrize("shape", [(8, 3, 32, 4), (8, 32, 64, 4)])
def test_nan_of_any_bits_is_nan_in_bfloat16(shape, bits, precision, simd):
    skip_missing(precision, simd)
    nan = np.array(bits, np.uint32).view(np.float32)
    training, images, features, weights, bias, image_bias = arrays(shape, 1)
    settings = {"precision": precision, "num_threads": 1}
    bad_images, bad_features, bad_weights = images.copy(), features.copy(), weights.copy()
    bad_images[0, 2, 3, 1] = bad_features[0, 1, 1, 9] = bad_weights[7, 2, 1, 2] = nan
    assert np.isnan(training.convolve(bad_images, weights, bias, relu=False, **settings)).any(axis=(0, 1, 2)).all()
    assert np.isnan(training.convolve(images, bad_weights, bias, relu=False, **settings)[..., 7]).all()
    assert np.isnan(training.transpose(bad_features, weights, image_bias, relu=False, **settings)).any()
    assert np.isnan(training.transpose(features, bad_weights, image_bias, relu=False, **settings)[..., 2]).any()
    assert np.isnan(training.weight_gradient(bad_images, features, **settings)).any(axis=(1, 2, 3)).all()
    assert np.isnan(training.weight_gradient(images, bad_features, **settings)[9]).all()


@pytest.mark.parametrize("batch", [1, 6])
def test_losses_and_gradients_of_v_agree_with_pytorch(batch, precision):
    torch.manual_seed(0)
    model = ConvVAE(64).to(memory_format=torch.channels_last)
    x, noise = torch.rand(batch, 3, 64, 64), torch.randn(batch, 64)
    twin = ConvVAE(64).double()
    twin.load_state_dict(model.state_dict())
    recon, mu, logvar = NativeVAE(model, precision)(x, noise)
    found = vae_loss(recon, x, mu, logvar, quartic_weight=30.0)
    recon, mu, logvar = twin(x.double(), noise.double())
    squares = (recon - x.double()).square()
    expected = (
        squares.sum() / batch
        + (0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1)).clamp(min=32).mean()
        + 30 * squares.square().sum() / batch
    )
    exact = precision == "float32"
    assert found[0].item() == pytest.approx(expected.item(), rel=1e-5 if exact else 5e-3)
    found[0].backward()
    expected.backward()
    for (name, own), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert own.grad.stride() == own.stride(), name
        difference = (own.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < (1e-3 if exact else 0.1)  # a ReLU may switch, (name, difference)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 40}, "channels, filters: expected multiples of 32, or fewer channels, got 40 and 32"),
        ({"filters": 16}, "filters: expected an integer from 32 to 4096, got 16"),
        ({"kernel": 9}, "kernel: expected an integer from 1 to 8, got 9"),
        ({"side": 0}, "side: expected an integer from 1 to 512, got 0"),
        (
            {"side": 130, "channels": 4096, "kernel": 130},
            "channels, filters, kernel: expected at most 67108864 weights, got 2215116800",
        ),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.ConvTraining(**{"side": 8, "channels": 3, "filters": 32, "kernel": 4, **arguments})


def test_bad_arrays_are_refused():
    training, images, features, weights, bias, _ = arrays((8, 3, 32, 4), 2)
    with pytest.raises(ValueError, match=r"images: expected \(B, 8, 8, 3\) float32, got \(2, 8, 8, 3\) float64"):
        training.convolve(images.astype(float), weights, bias, relu=True, precision="float32", num_threads=1)
    with pytest.raises(ValueError, match=r"bias: expected \(3,\) float32, got \(32,\)"):
        training.transpose(features, weights, bias, relu=True, precision="float32", num_threads=1)
    with pytest.raises(ValueError, match=r"features: expected \(2, 3, 3, 32\) float32, got \(1, 3, 3, 32\)"):
        training.weight_gradient(images, features[:1], precision="float32", num_threads=1)
    with pytest.raises(ValueError, match="num_threads: expected at least 1, got 0"):
        training.weight_gradient(images, features, precision="float32", num_threads=0)
    with pytest.raises(ValueError, match="precision: expected float32 or bfloat16, got 'half'"):
        training.weight_gradient(images, features, precision="half", num_threads=1)
