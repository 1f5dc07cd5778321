"""Random keys, as `lnz.kernels` shows them."""

from lnz._core.random import fast_key as fast_key
