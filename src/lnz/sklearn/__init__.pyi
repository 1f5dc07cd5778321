# The public names of lnz.sklearn. `__init__.py` loads each name from its module when it is first used.
from ._rbm import RBM as RBM
