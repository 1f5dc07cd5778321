"""Segmentation: potentials against their definitions, refusals, and the command line from training to labels on small made images."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from houses import call, made, whole_path, written
from PIL import Image

import lnz
from lnz._cli import segment_options
from lnz._core.checkpoint import load_arrays
from lnz.apps._segmentation.network import Hourglass, Relation, Trunk, relation_offsets, sliding_maximum
from lnz.apps._segmentation.neural_potentials import Architecture, Potentials
from lnz.apps._segmentation.segment_settings import Settings
from lnz.apps._segmentation.segment_training import coarse_labels
from lnz.apps._segmentation.variation import _moved
from lnz.io import DataError


def refused(*args):
    code, out, err = call(*args)
    assert (code, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("lnz: error: ")]
    assert len(lines) == 1, err
    return lines[0].removeprefix("lnz: error: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with masks, runs trained on some of them, and what was done with these: see `houses.whole_path`."""
    return tmp_path_factory.mktemp("segmentation")


@pytest.fixture(scope="module")
def path_and_models(folder):
    return whole_path(folder)


@pytest.fixture(scope="module")
def printed(path_and_models):
    return path_and_models[0]


def test_each_stage_trains_its_own_networks(path_and_models):
    first, second, later = path_and_models[1]
    for a, b, moves in ((first, second, {"trunk", "unary"}), (second, later, {"unary", "pairs"})):
        for name in ("trunk", "unary", "pairs", "scales"):
            same = jax.tree.map(lambda x, y: bool((x == y).all()), getattr(a, name), getattr(b, name))
            assert all(jax.tree.leaves(same)) == (name not in moves), name


def test_a_run_trained_and_evaluated(folder, printed):
    code, out, err = printed["trained"]
    assert code == 0, err
    trained = json.loads(out)
    assert (trained["images"], trained["held_out"], trained["classes"]) == (24, 6, 3)
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"config.json", "segmenter.safetensors", "metrics.jsonl", "results.json", "report.html"} <= names
    assert (folder / "run/report.html").read_text().count("data:image/png") == 2
    code, out, err = printed["evaluated"]
    assert code == 0, err
    found, prediction = json.loads(out), np.load(folder / "prediction.npz")
    assert found["pixel_accuracy"] > 0.88  # background everywhere has 0.85, and a mean IoU of 0.28
    assert found["mean_iou"] > 0.45
    for name in ("unary", "context", "refined"):
        np.testing.assert_allclose(prediction[name].sum(-1), 1, atol=1e-5)
        score = lnz.apps.confusion(made(20, 1).labels, prediction[name].argmax(-1), 3)
        assert found["stages"][name]["pixel_accuracy"] == pytest.approx(score.pixel_accuracy)
        assert found["stages"][name]["mean_iou"] == pytest.approx(score.mean_iou)
    assert found["mean_iou"] == found["stages"]["refined"]["mean_iou"]


def test_apply_writes_labels_and_confidence(folder, printed):
    code, out, err = printed["applied"]
    assert code == 0, err
    assert json.loads(out)["images"] == 20
    refined = np.load(folder / "prediction.npz")["refined"]
    for i in (0, 7, 19):
        mask, sure = (
            np.asarray(Image.open(folder / f"labelled/{name}/house{i:02}.png")) for name in ("masks", "confidence")
        )
        np.testing.assert_array_equal(mask, refined[i].argmax(-1))
        np.testing.assert_allclose(sure / 255, refined[i].max(-1), atol=0.5 / 255 + 1e-6)
    assert "exists already" in refused("apply", folder / "run", folder / "test", "--out", folder / "labelled")


def test_a_run_interrupted_and_resumed_continues_exactly(folder, printed):
    code, _, err = printed["interrupted"]
    assert code == 130
    assert f"epoch 1 of the stage context is saved. Go on with: lnz segment train --resume {folder / 'cut'}" in err
    assert printed["unfinished"][0] == 2
    assert "is not finished" in printed["unfinished"][2]
    assert printed["resumed"][0] == 0, printed["resumed"][2]
    whole, again = (load_arrays(folder / run / "segmenter.safetensors") for run in ("run", "cut"))
    for name, array in whole[0].items():
        np.testing.assert_array_equal(array, again[0][name])
    assert whole[1] == again[1]
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (folder / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("run", "cut")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 33
    assert "Leave out --epochs" in refused("train", "--resume", folder / "cut", "--epochs", 3)
    assert "is finished" in refused("train", "--resume", folder / "cut")


def test_training_that_is_refused_leaves_everything_as_it_was(folder, printed):
    data, run = folder / "train", folder / "run"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for args, message in [
        (("--out", run), "exists already"),
        (("--out", run, "--force", "--learning-rate", "nan"), "--learning-rate: nan is not above 0"),
        (("--out", run, "--force", "--stride", 3), "--stride: 3 is not one of 0, 1, 2 and 4"),
        (
            ("--out", run, "--force", "--stride", 4, "--range", 1.2),
            "is larger than the map of 4 x 5 nodes: use a smaller range",
        ),
        (("--out", run, "--force", "--stride", 4, "--range", 0.1), "holds no neighbours: use larger images"),
        (("--out", run, "--force", "--validation", 0.01), "leave none to hold out"),
        (
            ("--out", run, "--force", "--objective", "exact", "--neighbours", 5, "--stride", 1),
            "exact elimination is too expensive",
        ),
        (("--out", run, "--force", "--scales", "1,x"), "'1,x' are not numbers"),
        (("--out", run, "--force", "--classes", 2), "holds 2, but the classes are 0 … 1"),
    ]:
        assert message in refused("train", data, *args)
    assert "name the data and a run folder" in refused("train", data)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_runs_and_images_that_do_not_fit(folder, printed, tmp_path):
    written(
        tmp_path / "large",
        lnz.apps.LabelledImages(np.zeros((1, 30, 30, 3), np.uint8), np.eye(30, dtype=int)[None], 2, ("a",), "x"),
    )
    for command in (
        ("evaluate", folder / "run", tmp_path / "large"),
        ("apply", folder / "run", tmp_path / "large", "--out", tmp_path / "o"),
    ):
        assert "has images of 30 x 30 pixels, but the run was trained on images of 20 x 16. Resize them" in refused(
            *command
        )
    assert "there is no such run folder" in refused("evaluate", tmp_path / "none", folder / "test")
    (tmp_path / "config.json").write_text('{"kind": "tagger", "settings": {}}')
    assert "is a run of `lnz tag train`, not of `lnz segment train`" in refused("evaluate", tmp_path, folder / "test")
    (tmp_path / "config.json").write_text("[")
    assert "cannot be read" in refused("evaluate", tmp_path, folder / "test")


def damage(folder, kind):
    """A good folder, spoiled."""
    written(folder, made(4, 0))
    image, mask = folder / "images/house00.png", folder / "masks/house00.png"
    if kind == "no masks":
        for path in (folder / "masks").iterdir():
            path.unlink()
        (folder / "masks").rmdir()
    elif kind == "number":
        mask.unlink()
    elif kind == "names":
        mask.rename(folder / "masks/other.png")
    elif kind == "mask size":
        Image.fromarray(np.zeros((16, 21), np.uint8)).save(mask)
    elif kind == "image size":
        Image.fromarray(np.zeros((15, 20, 3), np.uint8)).save(folder / "images/house02.png")
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:200])
    elif kind == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:60])
    elif kind == "no image":
        mask.write_text("hello")
    elif kind == "colour":
        Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(mask)
    elif kind == "one class":
        for path in (folder / "masks").iterdir():
            Image.fromarray(np.zeros((16, 20), np.uint8)).save(path)
    elif kind == "deep":
        Image.fromarray(np.zeros((16, 20), np.uint16)).save(mask)
    elif kind == "small":
        for path in (*(folder / "images").iterdir(), *(folder / "masks").iterdir()):
            Image.fromarray(np.asarray(Image.open(path))[6:9, 5:8]).save(path)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no masks", "holds images without masks"),
        ("number", "the image house00 has no mask (4 images, 3 masks)"),
        ("names", "the image house00 has no mask"),
        ("mask size", "house00.png is 21 x 16 pixels, but"),
        ("image size", "house02.png is 20 x 15 pixels, but"),
        ("truncated", "cannot be read as an image"),
        ("truncated mask", "house00.png: cannot be read as an image"),
        ("no image", "cannot be read as an image"),
        ("colour", "is in colour, but a mask must hold class numbers"),
        ("one class", "needs at least two classes of pixels, but all are of class 0"),
        ("deep", "more than 8 bits"),
        ("small", "images of 3 x 3 pixels give no map at a stride of 4"),
    ],
)
def test_folders_that_cannot_be_learned_from(tmp_path, kind, message):
    folder = damage(tmp_path / "data", kind)
    assert message in refused("train", folder, "--out", tmp_path / "run", "--validation", 0, "--stride", 4)
    assert not (tmp_path / "run").exists()


def test_arrays(tmp_path):
    data = made(3, 0)
    two = (data.labels > 0).astype(np.uint8)
    packed = np.packbits(two.reshape(3, -1), axis=1)
    np.savez(tmp_path / "packed.npz", images=data.images, masks=packed)
    np.testing.assert_array_equal(lnz.apps.read_segmentation(tmp_path / "packed.npz").labels, two)
    np.savez(tmp_path / "a_labels.npz", labels=np.where(data.labels == 2, 11, data.labels).astype(np.uint8))
    Image.fromarray(data.images.reshape(-1, 20, 3)).save(tmp_path / "a_images.png")
    found = lnz.apps.read_segmentation(tmp_path / "a_labels.npz", void=11)
    np.testing.assert_array_equal(found.images, data.images)
    np.testing.assert_array_equal(found.labels, np.where(data.labels == 2, -1, data.labels))
    assert found.classes == 2
    np.savez(tmp_path / "odd.npz", images=data.images, masks=packed[:, :9])
    np.savez(tmp_path / "b_labels.npz", labels=data.labels)
    np.savez(tmp_path / "flat.npz", images=data.images[..., 0], labels=data.labels)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    for name, message in [
        ("odd", "masks of 9 bytes do not fit"),
        ("b_labels", "b_images.png beside it"),
        ("flat", "have shape"),
        ("bad", "cannot be read as an .npz"),
        ("none", "there is no such file"),
    ]:
        with pytest.raises(DataError, match=message):
            lnz.apps.read_segmentation(tmp_path / f"{name}.npz")
    black_white = np.where(two, 255, 0).astype(np.uint8)
    np.savez(tmp_path / "bw.npz", images=data.images, labels=black_white)
    np.testing.assert_array_equal(lnz.apps.read_segmentation(tmp_path / "bw.npz").labels, two)


def test_offsets_of_relations():
    around, below = relation_offsets((10, 12), 0.4, 3)
    assert around == ((0, 2), (2, -2), (2, 0), (2, 2))
    assert below == ((1, -2), (1, 0), (1, 2), (4, -2), (4, 0), (4, 2))
    for shape in ((23, 30), (8, 8), (5, 40)):
        for n in (2, 3, 5):
            both = relation_offsets(shape, 0.4, n)
            every = [offset for offsets in both for offset in offsets]
            assert len(set(every)) == len(every)
            assert all((r, c) > (0, 0) for r, c in every)
            assert all(r >= 1 for r, _ in both[1])
            assert max(r for r, _ in every) <= 0.4 * min(shape) + 0.5


def test_labels_of_nodes_are_those_of_most_pixels():
    labels = np.maximum(np.random.default_rng(0).integers(-2, 3, (9, 7, 9)), -1)
    found = np.asarray(coarse_labels(jnp.asarray(labels, jnp.int32), 4, 3))
    assert found.shape == (9, 2, 3)
    for i, r, c in np.ndindex(found.shape):
        block = labels[i, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].ravel()
        counts = np.bincount(block[block >= 0], minlength=3)
        assert found[i, r, c] == (counts.argmax() if 2 * counts.sum() > block.size else -1)


def test_a_sliding_maximum():
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2)).astype(np.float32)
    found = np.asarray(sliding_maximum(jnp.asarray(x)))
    for r, c in np.ndindex(6, 8):
        np.testing.assert_array_equal(found[0, r, c], x[0, max(0, r - 2) : r + 3, max(0, c - 2) : c + 3].max((0, 1)))


@pytest.mark.parametrize(("stride", "depth", "scales"), [(1, 0, (1.0,)), (4, 3, (2.0, 0.7, 0.1))])
def test_the_trunk_takes_images_of_any_size(stride, depth, scales):
    trunk = Trunk(jax.random.key(0), stride=stride, width=8, features=6, scales=scales, depth=depth)
    found = jax.eval_shape(trunk, jax.ShapeDtypeStruct((2, 9, 14, 3), jnp.float32))
    assert found.shape == (2, *trunk.map_shape(9, 14), 6) == (2, -(-9 // stride), -(-14 // stride), 6)


def test_an_hourglass_of_one_halving_is_its_definition():
    hourglass = Hourglass(jax.random.key(0), 8, 1)
    x = np.random.default_rng(0).normal(size=(1, 6, 4, 8)).astype(np.float32)
    (first, second), up = hourglass.down[0], hourglass.up[0]
    half = first(jnp.asarray(x.reshape(1, 3, 2, 2, 2, 8).max((2, 4))))
    half = np.asarray(half + second(half)).repeat(2, 1).repeat(2, 2)
    wanted = up(jnp.asarray(np.concatenate([half, x], -1)))
    np.testing.assert_allclose(hourglass(jnp.asarray(x), 1), wanted, atol=1e-5)
    np.testing.assert_array_equal(hourglass(jnp.asarray(x), 0), x)


@pytest.fixture(scope="module")
def potentials():
    a = Architecture(
        classes=3,
        height=16,
        width=20,
        centre=(100.0, 100.0, 100.0),
        spread=(50.0, 50.0, 50.0),
        stride=4,
        channels=8,
        depth=0,
        features=6,
        hidden=5,
        scales=(1.0,),
        reach=0.5,
    )
    found = Potentials(a, jax.random.key(0))
    rng = np.random.default_rng(0)
    pairs = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), found.pairs)
    return eqx.tree_at(lambda p: (p.pairs, p.scales), found, (pairs, jnp.asarray([0.5, 2.0], jnp.float32)))


def test_the_energy_is_its_definition(potentials):
    """-Σ U(y_p) - Σ_r s_r Σ V_r(y_p, y_q), V_r a net on the two feature vectors one after the other: ordered."""
    rng = np.random.default_rng(1)
    a, x = potentials.architecture, rng.normal(size=(4, 5, 6)).astype(np.float32)
    y = rng.integers(0, 3, (4, 5))
    field = potentials.field(jnp.asarray(x))
    unary = np.asarray(potentials.unary(jnp.asarray(x)))
    score = sum(unary[r, c, y[r, c]] for r, c in np.ndindex(4, 5))
    for net, offsets, scale in zip(potentials.pairs, a.offsets, (0.5, 2.0), strict=True):
        first = np.concatenate([net.first[0], net.second[0]])
        for down, right in offsets:
            for r, c in np.ndindex(4, 5):
                if 0 <= r + down < 4 and 0 <= c + right < 5:
                    both = np.concatenate([x[r, c], x[r + down, c + right]])
                    hidden = np.maximum(both @ first + np.asarray(net.bias[0]), 0)
                    table = np.einsum("h,hjk->jk", hidden, np.asarray(net.out[0])) + np.asarray(net.out_bias[0])
                    score += scale * table[y[r, c], y[r + down, c + right]]
    assert float(field(jnp.asarray(y))) == pytest.approx(-score, rel=1e-4)
    relation = Relation((4, 5), a.offsets[0])
    rows = [np.arange(len(relation.edges), dtype=np.float32)[:, None]] * 2
    plain = lnz.crf.Graph(20, relation.edges)
    np.testing.assert_array_equal(relation.collected(*map(jnp.asarray, rows)), plain.collected(*map(jnp.asarray, rows)))


def test_types_of_pieces_are_trained_apart(potentials):
    """The gradient of the published objective for one relation does not depend on the other, nor on the unary net."""
    x, y = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 6)), jnp.float32), jnp.zeros((4, 5), jnp.int32)

    @eqx.filter_jit
    def slope(p):
        return eqx.filter_grad(lambda p: lnz.crf.Piecewise().loss(p.field(x), y))(p).pairs[0]

    other = eqx.tree_at(
        lambda p: (p.unary, p.pairs[1]), potentials, replace_fn=lambda m: jax.tree.map(lambda v: 2 * v, m)
    )
    mine, yours = slope(potentials), slope(other)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(mine)) > 0.1
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(yours), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "likelihood"},
        {"epochs": 0},
        {"depth": -1},
        {"stride": 3},
        {"validation": 1.0},
        {"weight_decay": -1.0},
        {"learning_rate": 0.0},
    ],
)
def test_settings_that_cannot_serve(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)


def test_the_command_and_the_library_have_the_same_defaults():
    options = dataclasses.asdict(segment_options.Settings())
    library = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert options == {name: default for name, default in library.items() if name not in ("features", "hidden")}


@pytest.mark.parametrize(("size", "stride"), [((32, 32), 1), ((64, 64), 2), ((90, 120), 4), ((16, 20), 1)])
def test_the_stride_follows_the_size_of_the_images(size, stride):
    data = made(2, 0)
    images, labels = np.zeros((2, *size, 3), np.uint8), np.zeros((2, *size), np.int32)
    assert Settings().architecture(dataclasses.replace(data, images=images, labels=labels)).stride == stride


def test_what_a_varied_image_shows_beyond_its_edge_has_no_label():
    """Shifted, turned and shrunk images of one class: the rest is void."""
    images, labels = jnp.zeros((20, 12, 16, 1), jnp.float32), jnp.ones((20, 12, 16), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 20)
    assert set(np.unique(jax.vmap(_moved)(images, labels, keys)[1])) == {-1, 1}
