"""Context is worth something where a label hangs on what lies above: nets that see one node each, joined by the two relations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lnz
from lnz.apps._segmentation.neural_potentials import Architecture, Potentials
from lnz.apps._segmentation.segmenter import Segmenter

SIDE = 8


def towers(n, seed):
    """A grey block between a roof and a ground, each red or blue at random; the class of the block is the colour of its roof. One node, one pixel."""
    rng = np.random.default_rng(seed)
    images, labels = np.full((n, SIDE, SIDE, 3), 40.0), np.zeros((n, SIDE, SIDE), np.int32)
    colours = np.asarray([(220, 40, 40), (40, 40, 220)])
    for i in range(n):
        roof, ground = rng.integers(0, 2, 2)
        top, left = rng.integers(0, 3), rng.integers(0, 5)
        columns = slice(left, left + 4)
        images[i, top : top + 2, columns] = colours[roof]
        images[i, top + 2 : top + 4, columns] = 140
        images[i, top + 4 : top + 6, columns] = colours[ground]
        labels[i, top + 2 : top + 4, columns] = 1 + roof
    return np.clip(images + rng.normal(0, 8, images.shape), 0, 255).astype(np.uint8), labels


class Colours(eqx.Module):
    """A trunk that sees one pixel: its colours are the features of its node."""

    def __call__(self, x):
        return x


@pytest.fixture(scope="module")
def trained():
    """Potentials of single pixels, trained by pieces as published; unary and pairs need nothing from each other."""
    a = Architecture(
        classes=3,
        height=SIDE,
        width=SIDE,
        centre=(80.0, 80.0, 80.0),
        spread=(60.0, 60.0, 60.0),
        stride=1,
        features=3,
        hidden=16,
    )
    first = eqx.tree_at(lambda p: p.trunk, Potentials(a, jax.random.key(0)), Colours())
    images, labels = map(jnp.asarray, towers(30, 0))
    optimizer = optax.adam(0.04)

    @eqx.filter_jit
    def step(model, state):
        def mean(model):
            fields = jax.vmap(model.field)(model.features(images))
            return jnp.mean(jax.vmap(lnz.crf.Piecewise().loss)(fields, labels))

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            change, state = optimizer.update(eqx.filter_grad(mean)(model), state)
        return eqx.apply_updates(model, change), state

    model, state = first, optimizer.init(eqx.filter(first, eqx.is_inexact_array))
    for _ in range(80):
        model, state = step(model, state)
    return eqx.tree_at(lambda p: p.scales, model, first.scales)  # a scale of 1 each, as published


def accuracies(model, images, labels):
    """Of the pixels of blocks, by the unary net and with context."""
    return [float((p.argmax(-1) == labels)[labels > 0].mean()) for p in Segmenter(model).coarse(images)]


def turned(net):
    """V(y_p, y_q, x_pq) becomes V(y_q, y_p, x_qp)."""
    return eqx.tree_at(
        lambda n: (n.first, n.second, n.out, n.out_bias),
        net,
        (net.second, net.first, net.out.swapaxes(2, 3), net.out_bias.swapaxes(1, 2)),
    )


def test_context_knows_what_lies_above(trained):
    images, labels = towers(60, 1)
    alone, context = accuracies(trained, images, labels)
    assert alone < 0.7  # a grey pixel says nothing of the roof
    assert context > 0.95
    background = labels == 0
    _, p = Segmenter(trained).coarse(images)
    assert (p.argmax(-1) == labels)[background].mean() > 0.97


def test_above_and_below_are_not_the_same(trained):
    images, labels = towers(60, 1)
    swapped = eqx.tree_at(lambda p: p.pairs, trained, tuple(map(turned, trained.pairs)))
    assert accuracies(swapped, images, labels)[1] < 0.7  # now it follows the ground, whose colour means nothing
    assert accuracies(trained, images[:, ::-1], labels[:, ::-1])[1] < 0.7  # and so with the images upside down
    assert accuracies(swapped, images[:, ::-1], labels[:, ::-1])[1] > 0.95  # both at once: as before


def test_each_relation_joins_pairs_of_its_own(trained):
    """Without above/below, what is left is the nearer box."""
    images, labels = towers(60, 1)
    without = eqx.tree_at(lambda p: p.scales, trained, jnp.zeros(2, jnp.float32))
    alone, context = accuracies(without, images, labels)
    assert context == pytest.approx(alone)
