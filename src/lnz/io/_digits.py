"""scikit-learn's handwritten digits: small, real, and on every machine that has scikit-learn."""

from __future__ import annotations

import numpy as np

from lnz.io._data import Data


def digits() -> Data:
    """The 1,797 handwritten digits that come with scikit-learn, in its order.

    Returns:
        uint8 of shape (1797, 8, 8) with values 0 (paper) to 16 (ink), and the labels 0 to 9. `rows` has them as
        (1797, 64); `binarise` puts them at 0 and 1 (ink from 8 up).

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.

    Example:
        >>> digits().rows.shape
        (1797, 64)
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.asarray(bunch.images).astype(np.uint8)  # type: ignore[union-attr]
    return Data(images, "scikit-learn's digits", (8, 8), np.asarray(bunch.target))  # type: ignore[union-attr]
