# The public names of lnz.kernels. `__init__.py` loads each name from its module when it is first used.
from ._continuous import NUTS as NUTS
from ._continuous import HamiltonianMonteCarlo as HamiltonianMonteCarlo
from ._continuous import UnadjustedLangevin as UnadjustedLangevin
from ._continuous import adapted as adapted
from ._coupled import NotMet as NotMet
from ._coupled import unbiased_expectation as unbiased_expectation
from ._coupling_from_the_past import coupling_from_the_past as coupling_from_the_past
from ._kernels import Gibbs as Gibbs
from ._kernels import Kernel as Kernel
from ._kernels import Langevin as Langevin
from ._kernels import run_chains as run_chains
from ._keys import fast_key as fast_key
from ._local import DiscreteLangevin as DiscreteLangevin
from ._local import GibbsWithGradients as GibbsWithGradients
from ._local import PathAuxiliary as PathAuxiliary
from ._swendsen_wang import SwendsenWang as SwendsenWang
