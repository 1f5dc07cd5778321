# The public names of lnz.testing. `__init__.py` loads each name from its module when it is first used.
from ._energies import check_energy as check_energy
from ._routes import check_route as check_route
