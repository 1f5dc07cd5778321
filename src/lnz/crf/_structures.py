"""Structures and log-potentials of conditional models, under the names of this room."""

from lnz._core.spaces import MixedCategorical as MixedCategorical
from lnz._models.pairwise_tables import gaussian_tables as gaussian_tables
from lnz._models.pairwise_tables import low_rank_tables as low_rank_tables
from lnz._models.pairwise_tables import potts_tables as potts_tables
from lnz._models.structures import Chain as Chain
from lnz._models.structures import Graph as Graph
from lnz._models.structures import Grid as Grid
from lnz._models.structures import Tree as Tree
