"""The dense field against pydensecrf at equal settings: how many labels agree, and process time per image.

    python benchmarks/dense_crf.py camvid_val_labels.npz [--images 24]

The probabilities are the true labels with a quarter of the pixels replaced at random, each label with weight 0.5 and the others with 0.05. Needs
pydensecrf (or its fork pydensecrf2), NumPy and SciPy; JAX is not loaded.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from timing import one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--images", type=int, default=24)
    arguments = parser.parse_args()
    one_thread()
    import pydensecrf.densecrf as peer

    from lnz.apps._segmentation.dense_crf import DenseCRF
    from lnz.apps._segmentation.reading import read_segmentation

    data = read_segmentation(arguments.labels, classes=11, void=11)[: arguments.images]
    rng, k = np.random.default_rng(0), data.classes
    noisy = np.where(
        rng.random(data.labels.shape) < 0.25, rng.integers(0, k, data.labels.shape), np.maximum(data.labels, 0)
    )
    p = np.full((*noisy.shape, k), 0.05, np.float32)
    np.put_along_axis(p, noisy[..., None], 0.5, -1)
    p /= p.sum(-1, keepdims=True)
    crf = DenseCRF(3.0, 3.0, 5.0, 30.0, 13.0, iterations=5)
    crf(data.images[:1], p[:1])
    began = time.process_time()
    mine = np.concatenate([crf(data.images[i : i + 8], p[i : i + 8]) for i in range(0, len(data), 8)])
    ours, theirs, same, apart = time.process_time() - began, 0.0, [], []
    _, height, width, _ = p.shape
    for image, q, found in zip(data.images, p, mine, strict=True):
        began = time.process_time()
        field = peer.DenseCRF2D(width, height, k)
        field.setUnaryEnergy(np.ascontiguousarray(-np.log(q.reshape(-1, k).T)))
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=30, srgb=13, rgbim=np.ascontiguousarray(image), compat=5)
        other = np.array(field.inference(5)).reshape(k, height, width).transpose(1, 2, 0)
        theirs += time.process_time() - began
        same.append(float((other.argmax(-1) == found.argmax(-1)).mean()))
        apart.append(float(abs(other - found).mean()))
    n = len(data)
    print(f"same labels: {100 * np.mean(same):.2f} % of pixels, at least {100 * min(same):.2f} % of an image's")
    print(f"mean |difference of probabilities|: {np.mean(apart):.1e}")
    print(
        f"process time an image of {width} x {height}, {k} classes: {1e3 * ours / n:.1f} ms; pydensecrf {1e3 * theirs / n:.1f} ms"
    )


if __name__ == "__main__":
    main()
