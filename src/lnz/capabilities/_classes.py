"""The public names of this room that stand in `_core`."""

from lnz._core.capabilities import Annealable as Annealable
from lnz._core.capabilities import BlockSweepable as BlockSweepable
from lnz._core.capabilities import Blockwise as Blockwise
from lnz._core.capabilities import Conditional as Conditional
from lnz._core.capabilities import Factored as Factored
from lnz._core.capabilities import Featured as Featured
from lnz._core.capabilities import Incomplete as Incomplete
from lnz._core.capabilities import Marginal as Marginal
from lnz._core.capabilities import Normalised as Normalised
from lnz._core.capabilities import Sweep as Sweep
from lnz._core.capabilities import Sweepable as Sweepable
from lnz._core.capabilities import TwoLayer as TwoLayer
from lnz._core.capabilities import collapsed as collapsed
from lnz._core.capabilities import complete as complete
from lnz._core.capabilities import data_energy_of as data_energy_of
from lnz._core.capabilities import data_space as data_space
from lnz._core.capabilities import free_energy_of as free_energy_of
from lnz._core.capabilities import log_latent_volume as log_latent_volume
from lnz._core.capabilities import observed_space as observed_space
from lnz._core.capabilities import tempered as tempered
from lnz._core.capabilities import visible_part as visible_part
