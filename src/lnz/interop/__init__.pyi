# The public names of lnz.interop. `__init__.py` loads each name from its module when it is first used.
from ._arviz import chains_to_arviz as chains_to_arviz
from ._dimod import BQM as BQM
from ._dimod import from_bqm as from_bqm
from ._dimod import to_bqm as to_bqm
from ._dimod_sampler import DimodSampler as DimodSampler
from ._pgmpy import PgmpyModel as PgmpyModel
from ._pgmpy import from_pgmpy as from_pgmpy
from ._pgmpy import to_pgmpy as to_pgmpy
from ._records import record_numbers as record_numbers
from ._records import to_mlflow as to_mlflow
from ._records import to_tensorboard as to_tensorboard
from ._records import to_wandb as to_wandb
