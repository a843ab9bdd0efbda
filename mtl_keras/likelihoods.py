"""The noise models of the tasks, by name."""

from typing import NamedTuple


class Likelihood(NamedTuple):
    """The noise model of a task, with the learned scalar `s`: its loss `L` enters the
    total as `a * exp(-s) * L + c * s`, and `exp(s / sigma_power)` is called sigma."""

    a: float
    c: float
    sigma_power: int


LIKELIHOODS = {
    "softmax": Likelihood(a=1.0, c=0.5, sigma_power=2),  # paper, eq. 10
    "gaussian": Likelihood(a=0.5, c=0.5, sigma_power=2),  # paper, eq. 5 and 7
    "laplace": Likelihood(a=1.0, c=1.0, sigma_power=1),  # -log p of Laplace(0, b)
    "mtl": Likelihood(a=0.5, c=1.0, sigma_power=2),  # the original's code
}
