"""What an energy may offer beyond `space` and `__call__`: small abstract classes, and how the rest of the library asks for them.

An energy opts in by inheritance. Code that needs a capability asks `energy.offers(Normalised)`, never for the name of a method, so the other methods
and fields of an energy may have any names. The functions beside the classes have a default for energies without the capability.
"""

from lnz._core.capabilities.annealable import Annealable as Annealable
from lnz._core.capabilities.annealable import Tempered as Tempered
from lnz._core.capabilities.annealable import log_latent_volume as log_latent_volume
from lnz._core.capabilities.annealable import mixed as mixed
from lnz._core.capabilities.annealable import slope as slope
from lnz._core.capabilities.annealable import tempered as tempered
from lnz._core.capabilities.annealable import tempers_free_energy as tempers_free_energy
from lnz._core.capabilities.blockwise import Blockwise as Blockwise
from lnz._core.capabilities.conditional import Conditional as Conditional
from lnz._core.capabilities.factored import Factored as Factored
from lnz._core.capabilities.factored import arrays_are_data as arrays_are_data
from lnz._core.capabilities.factored import factors_of as factors_of
from lnz._core.capabilities.factored import least_width as least_width
from lnz._core.capabilities.featured import Featured as Featured
from lnz._core.capabilities.incomplete import Incomplete as Incomplete
from lnz._core.capabilities.incomplete import complete as complete
from lnz._core.capabilities.incomplete import data_energy_of as data_energy_of
from lnz._core.capabilities.incomplete import data_space as data_space
from lnz._core.capabilities.incomplete import visible_part as visible_part
from lnz._core.capabilities.marginal import FreeEnergy as FreeEnergy
from lnz._core.capabilities.marginal import Marginal as Marginal
from lnz._core.capabilities.marginal import collapsed as collapsed
from lnz._core.capabilities.marginal import free_energy_of as free_energy_of
from lnz._core.capabilities.marginal import observed_space as observed_space
from lnz._core.capabilities.normalised import Normalised as Normalised
from lnz._core.capabilities.normalised import require_normalised as require_normalised
from lnz._core.capabilities.sweepable import BlockSweepable as BlockSweepable
from lnz._core.capabilities.sweepable import Sweep as Sweep
from lnz._core.capabilities.sweepable import Sweepable as Sweepable
from lnz._core.capabilities.two_layer import TwoLayer as TwoLayer
