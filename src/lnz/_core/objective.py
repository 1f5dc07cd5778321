"""What an objective is: a number per state that training makes small."""

from __future__ import annotations

import abc
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray


class Objective(abc.ABC):
    """A loss of single states, whose mean over data is minimised. Static: a frozen dataclass; one line chooses it.

    `lnz.fit(energy, data, objective=…)` averages over the data. A loop of your own puts `jax.vmap` around `loss` for a batch, with a key a
    state, and `jit` and `grad` around that.

    For conditional models the gradient is <μ - onehot(y), ∂log-potentials>, where μ are the marginals of the model (T1) or of what the objective
    puts in its place. The value is a sum over the nodes, edges and factors of one input, in nats. Masked nodes and their edges add nothing, and
    -inf log-potentials have no gradient.
    """

    @abc.abstractmethod
    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """The objective of one state, in nats unless the objective says otherwise; +inf where the state is impossible.

        Args:
            energy: an `Energy`; for conditional models, the log-potentials of one input: a field, or a chain.
            state: one observed state; for conditional models a labelling in integers; what stands at masked nodes is ignored.
            key: a random key, for an objective that samples.

        Raises:
            ValueError: for labels of the wrong shape or out of range (where they are traced, such labels give NaN), and where an objective that
                samples gets no key.
        """

    def unsupported_reason(self, energy: Any) -> str | None:
        """Why this objective does not support the energy, in words, or None."""
        return None
