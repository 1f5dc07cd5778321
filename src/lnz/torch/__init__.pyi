# The public names of lnz.torch. `__init__.py` loads each name from its module when it is first used.
from ._crf import CRF as CRF
from ._energy import ModuleEnergy as ModuleEnergy
from ._energy import as_energy as as_energy
from ._negative import PersistentChains as PersistentChains
from ._structured import RandomField as RandomField
from ._structured import SemiMarkovCRF as SemiMarkovCRF
