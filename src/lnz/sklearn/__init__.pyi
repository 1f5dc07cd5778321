# The public names of lnz.sklearn. `__init__.py` loads each name from its module when it is first used.
from ._crf import CRF as CRF
from ._markov_network import Ising as Ising
from ._markov_network import MarkovNetwork as MarkovNetwork
from ._rbm import RBM as RBM
