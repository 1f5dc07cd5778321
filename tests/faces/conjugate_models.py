"""Models whose evidence has a closed form, with data: what the tests of NumPyro's and of PyMC's models share."""

import math

import numpy as np
from scipy.special import betaln, gammaln
from scipy.stats import multivariate_normal

RNG = np.random.default_rng(11)
X = RNG.normal(size=(12, 3))
Y = np.array([2.1, 0.3, 1.7, 2.9, -0.4, 1.2, 3.3])
REGRESSED = X @ np.array([1.0, -0.5, 2.0]) + 0.7 * RNG.normal(size=12)
COUNTS = np.array([3, 0, 5, 2, 4])
CATEGORIES = np.array([4, 1, 0, 7])
ALPHA = np.array([0.9, 1.5, 2.0, 0.7])
TIMES = np.linspace(0, 2, 8)
KERNEL = np.exp(-0.5 * np.square(TIMES[:, None] - TIMES[None]) / 0.5**2) + 1e-3 * np.eye(8)
SIGNAL = np.sin(3 * TIMES) + 0.3 * RNG.normal(size=8)
SCHOOLS_Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SCHOOLS_SD = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
SCHOOLS = -31.3113  # Rubin 1981; mean N(0, 5²), scale half-Cauchy 5: quadrature in two dimensions


def regression(x, y, a=2.0, b=1.5):
    """y ~ N(x w, s²), w ~ N(0, s² I), s² ~ inverse gamma (a, b)."""
    n, d = x.shape
    precision = x.T @ x + np.eye(d)
    mean = np.linalg.solve(precision, x.T @ y)
    an, bn = a + n / 2, b + 0.5 * (y @ y - mean @ precision @ mean)
    return (
        gammaln(an)
        - gammaln(a)
        + a * math.log(b)
        - an * math.log(bn)
        - 0.5 * np.linalg.slogdet(precision)[1]
        - n / 2 * math.log(2 * math.pi)
    )


TRUTH = {
    "normal": regression(np.ones((7, 1)), Y),
    "regression": regression(X, REGRESSED),
    "beta-binomial": math.log(math.comb(20, 14)) + betaln(2 + 14, 3.5 + 6) - betaln(2, 3.5),
    "dirichlet-multinomial": gammaln(13)
    - gammaln(CATEGORIES + 1).sum()
    + gammaln(ALPHA.sum())
    - gammaln(ALPHA.sum() + 12)
    + (gammaln(ALPHA + CATEGORIES) - gammaln(ALPHA)).sum(),
    "poisson-gamma": 2.5 * math.log(0.8)
    - gammaln(2.5)
    + gammaln(2.5 + 14)
    - (2.5 + 14) * math.log(0.8 + 5)
    - gammaln(COUNTS + 1).sum(),
    "gaussian process": multivariate_normal(np.zeros(8), KERNEL + 0.09 * np.eye(8)).logpdf(SIGNAL),
    "schools": SCHOOLS,
    "schools, not centred": SCHOOLS,
}
