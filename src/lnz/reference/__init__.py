"""Models whose log Z is known exactly, computed without the rest of the library: ground truth for tests and users.

Only NumPy and SciPy, float64 and Python integers; natural logarithms; p ∝ exp(-E). `VALUES` lists known figures with
the functions that compute them; `lnz.reference_models` has the models as energies.

Example:
    >>> from lnz import reference
    >>> entry = reference.named("A1-16x16")
    >>> abs(entry.compute() - entry.value) <= entry.tolerance
    True
"""

from lnz.reference.chain import gaussian_chain_log_z as gaussian_chain_log_z
from lnz.reference.chain import phi4_chain_log_density as phi4_chain_log_density
from lnz.reference.chain import phi4_chain_log_z as phi4_chain_log_z
from lnz.reference.continuous import double_well_log_z as double_well_log_z
from lnz.reference.continuous import eggbox_log_density as eggbox_log_density
from lnz.reference.continuous import eggbox_log_z as eggbox_log_z
from lnz.reference.continuous import gaussian_shells_log_density as gaussian_shells_log_density
from lnz.reference.continuous import gaussian_shells_log_z as gaussian_shells_log_z
from lnz.reference.continuous import many_well_log_density as many_well_log_density
from lnz.reference.continuous import many_well_log_z as many_well_log_z
from lnz.reference.continuous import product_binomial_log_density as product_binomial_log_density
from lnz.reference.continuous import product_binomial_log_z as product_binomial_log_z
from lnz.reference.continuous import rosenbrock_log_density as rosenbrock_log_density
from lnz.reference.continuous import rosenbrock_log_z as rosenbrock_log_z
from lnz.reference.counting import colourings_count as colourings_count
from lnz.reference.counting import dominoes_count as dominoes_count
from lnz.reference.counting import dominoes_log_count as dominoes_log_count
from lnz.reference.counting import hard_squares_count as hard_squares_count
from lnz.reference.counting import spanning_trees_log_count as spanning_trees_log_count
from lnz.reference.ising import ISING_CRITICAL_BETA as ISING_CRITICAL_BETA
from lnz.reference.ising import ising_bulk_bond_sum as ising_bulk_bond_sum
from lnz.reference.ising import ising_bulk_log_z as ising_bulk_log_z
from lnz.reference.ising import ising_torus_bond_sum as ising_torus_bond_sum
from lnz.reference.ising import ising_torus_log_z as ising_torus_log_z
from lnz.reference.lattice import brute_force_log_z as brute_force_log_z
from lnz.reference.lattice import grid_log_z as grid_log_z
from lnz.reference.lattice import ising_brute_force_log_z as ising_brute_force_log_z
from lnz.reference.lattice import ising_grid_log_z as ising_grid_log_z
from lnz.reference.lattice import potts_critical_beta as potts_critical_beta
from lnz.reference.lattice import potts_grid_log_z as potts_grid_log_z
from lnz.reference.lattice import potts_torus_log_z as potts_torus_log_z
from lnz.reference.normalised import funnel_log_density as funnel_log_density
from lnz.reference.normalised import gaussian_mixture_log_density as gaussian_mixture_log_density
from lnz.reference.normalised import mixture_means as mixture_means
from lnz.reference.normalised import student_mixture_log_density as student_mixture_log_density
from lnz.reference.planar import bimodal_couplings as bimodal_couplings
from lnz.reference.planar import kac_ward_log_z as kac_ward_log_z
from lnz.reference.sums import complete_graph_sum as complete_graph_sum
from lnz.reference.sums import ising_sum as ising_sum
from lnz.reference.sums import rbm_sum as rbm_sum
from lnz.reference.sums import ring_sum as ring_sum
from lnz.reference.values import VALUES as VALUES
from lnz.reference.values import ReferenceValue as ReferenceValue
from lnz.reference.values import named as named
