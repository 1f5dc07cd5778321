"""Random keys, as part of `lnz.kernels`."""

from lnz._core.random import fast_key as fast_key
