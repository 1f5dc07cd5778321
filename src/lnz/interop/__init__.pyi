# The public names of lnz.interop. `__init__.py` loads each name from its module when it is first used.
from ._dimod import BQM as BQM
from ._dimod import from_bqm as from_bqm
from ._dimod import to_bqm as to_bqm
from ._pgmpy import PgmpyModel as PgmpyModel
from ._pgmpy import from_pgmpy as from_pgmpy
from ._pgmpy import to_pgmpy as to_pgmpy
