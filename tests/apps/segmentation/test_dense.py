"""The dense field and its filter against sums over all pairs of points."""

import numpy as np
import pytest

import lnz
from lnz.apps._segmentation.filters import PermutohedralLattice

THETA = {"position_width": 2.0, "colour_position_width": 6.0, "colour_width": 25.0}


def image(seed=0, height=14, width=18):
    """Smooth colours with an edge, and noise."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:height, :width]
    base = np.stack([80 + 4 * down, 60 + 3 * right, np.where(right > width // 2, 180, 60)], -1)
    return np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


def gaussian(features):
    return np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))


def exact_kernels(pixels):
    """Both kernels, normalised symmetrically, as matrices."""
    height, width, _ = pixels.shape
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    colour = pixels.reshape(-1, 3).astype(float)
    near = gaussian(place / THETA["position_width"])
    alike = gaussian(np.concatenate([place / THETA["colour_position_width"], colour / THETA["colour_width"]], axis=1))
    scales = [1 / np.sqrt(k.sum(1)) for k in (near, alike)]
    return [s[:, None] * k * s for s, k in zip(scales, (near, alike), strict=True)]


@pytest.mark.parametrize(("d", "least", "most"), [(1, 0.84, 0.96), (2, 0.74, 0.94), (3, 0.66, 0.98)])
def test_the_lattice_sums_gaussians(d, least, most):
    points = np.random.default_rng(d).uniform(0, 4, (1500, d))
    values = np.random.default_rng(0).random((1500, 2))
    ratio = PermutohedralLattice(points)(values) / (gaussian(points) @ values)
    assert ((least < ratio) & (ratio < most)).all()  # a little too small, and much the same everywhere
    assert ratio.std() < 0.03


def test_normalised_the_lattice_errs_by_two_percent():
    pixels = image()
    exact = exact_kernels(pixels)
    values = np.random.default_rng(1).random((1, 14, 18, 3)).astype(np.float32)
    crf = lnz.apps.DenseCRF(**THETA)
    for kernel, matrix, median, most in zip(crf.kernels(pixels[None]), exact, (1e-6, 0.02), (1e-5, 0.25), strict=True):
        error = abs(kernel(values).reshape(-1, 3) / (matrix @ values.reshape(-1, 3)) - 1)
        assert np.median(error) < median
        assert error.max() < most


def test_mean_field_is_that_of_the_exact_kernels():
    pixels, rng = image(), np.random.default_rng(2)
    p = rng.dirichlet([0.6] * 4, (1, 14, 18)).astype(np.float32)
    crf = lnz.apps.DenseCRF(1.5, colour_weight=2.5, iterations=4, **THETA)
    q = p.reshape(-1, 4).astype(float)
    log_p = np.log(np.maximum(q, 1e-8))
    for _ in range(4):
        near, alike = exact_kernels(pixels)
        said = np.exp(log_p + 1.5 * near @ q + 2.5 * alike @ q)
        q = said / said.sum(1, keepdims=True)
    found = crf(pixels[None], p).reshape(-1, 4)
    assert (found.argmax(1) == q.argmax(1)).mean() >= 0.98  # of random labels, many of them nearly even
    assert abs(found - q).max() < 0.05
    assert abs(found - q).mean() < 0.004


def test_images_of_a_batch_do_not_see_each_other():
    images = np.stack([image(seed) for seed in range(3)])
    p = np.random.default_rng(3).dirichlet([1.0] * 3, images.shape[:3]).astype(np.float32)
    crf = lnz.apps.DenseCRF(**THETA)
    whole = crf(images, p)
    for i in range(3):
        np.testing.assert_allclose(whole[i], crf(images[i : i + 1], p[i : i + 1])[0], atol=1e-5)


def test_labels_follow_the_edge():
    pixels = image()
    truth = (np.arange(18) > 9)[None].repeat(14, 0).astype(int)
    flipped = np.random.default_rng(4).random(truth.shape) < 0.2
    p = np.where((truth ^ flipped)[..., None] == np.arange(2), 0.7, 0.3)[None]
    crf = lnz.apps.DenseCRF(**THETA)
    assert (crf(pixels[None], p).argmax(-1)[0] == truth).mean() > 0.98
    fitted = lnz.apps.DenseCRF(**THETA).fitted(pixels[None], p, truth[None], weights=(0.0, 3.0))
    score = (fitted(pixels[None], p).argmax(-1)[0] == truth).mean()
    assert score >= 0.99
    assert fitted.colour_weight == 3
    nothing = lnz.apps.DenseCRF(0.0, colour_weight=0.0)
    np.testing.assert_allclose(nothing(pixels[None], p), p, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour_width": 0.0}, "colour_width must be a number above 0"),
        ({"position_weight": -1.0}, "position_weight must be a number at least 0"),
        ({"colour_weight": np.nan}, "colour_weight must be"),
        ({"iterations": 1.5}, "iterations must be an integer"),
        ({"iterations": 0}, "iterations must be a number above 0"),
    ],
)
def test_settings_that_cannot_serve(options, message):
    with pytest.raises(ValueError, match=message):
        lnz.apps.DenseCRF(**options)


def test_input_that_cannot_be_refined():
    pixels, p = image()[None], np.full((1, 14, 18, 2), 0.5)
    with pytest.raises(ValueError, match="have shape"):
        lnz.apps.DenseCRF()(pixels, p[:, 1:])
    with pytest.raises(ValueError, match="negative or NaN"):
        lnz.apps.DenseCRF()(pixels, np.where(p == 0.5, np.nan, p))
    with pytest.raises(ValueError, match="standard deviations in 5 dimensions"):
        lnz.apps.DenseCRF(colour_width=1e-4)(pixels, p)
    with pytest.raises(ValueError, match="finite numbers of shape"):
        PermutohedralLattice(np.zeros(3))


def test_confusion():
    score = lnz.apps.confusion([[0, 1, 2], [1, -1, 2]], [[0, 1, 1], [1, 0, 2]], 4)
    assert score.pixel_accuracy == pytest.approx(4 / 5)
    np.testing.assert_allclose(score.iou, [1, 2 / 3, 1 / 2, np.nan])
    assert score.mean_iou == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        lnz.apps.confusion([0, 2], [0, 1], 2)
    with pytest.raises(ValueError, match="compared"):
        lnz.apps.confusion([0, 1], [0], 2)
    assert np.isnan(lnz.apps.confusion([-1], [0], 2).pixel_accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255.0, "these are floats from 0 to 1: multiply them by 255"),
        (lambda x: (x / 255.0).astype(np.float32), "these are floats from 0 to 1"),
        (lambda x: x.astype(np.int32) - 60, "grey levels from 0 to 255, but some values"),
        (lambda x: x.astype(np.uint16) * 256, "grey levels from 0 to 255, but some values"),
        (lambda x: np.where(x == x.max(), np.nan, x), "grey levels from 0 to 255, but some values"),
    ],
)
def test_images_in_other_units_are_refused(change, message):
    pixels, p = image()[None], np.full((1, 14, 18, 2), 0.5)
    with pytest.raises(ValueError, match=message):
        lnz.apps.DenseCRF()(change(pixels), p)
    with pytest.raises(ValueError, match=message):
        lnz.apps.DenseCRF().fitted(change(pixels), p, np.zeros((1, 14, 18), int))


def test_floats_of_grey_levels_are_those_of_bytes():
    pixels, p = image()[None], np.random.default_rng(0).dirichlet([1, 1], (1, 14, 18))
    found = lnz.apps.DenseCRF()(pixels, p)
    for same in (pixels.astype(float), pixels / 255.0 * 255, pixels.astype(np.int64)):
        np.testing.assert_allclose(lnz.apps.DenseCRF()(same, p), found, atol=1e-5)
