"""Handwritten digits: a small set of real images that travels with the package."""

from __future__ import annotations

import io
from importlib import resources

import numpy as np

from lnz.io._data import Data


def digits() -> Data:
    """The 1,797 handwritten digits of 8 x 8 pixels, in the order of scikit-learn's `load_digits`.

    Returns:
        uint8 of shape (1797, 8, 8) with values 0 (paper) to 16 (ink), and the labels 0 to 9. `rows` has them as
        (1797, 64); `binarise` puts them at 0 and 1 (ink from 8 up).

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, test part, UCI Machine Learning Repository,
    doi:10.24432/C50P49, licence CC BY 4.0.

    Example:
        >>> digits().rows.shape
        (1797, 64)
    """
    content = resources.files("lnz.io").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(content)) as arrays:
        return Data(arrays["images"], "scikit-learn's digits", (8, 8), arrays["labels"])
