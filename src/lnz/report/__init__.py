"""Pictures of a run, of an audit and of a graphical model, and the pages that show them."""

from .audit_page import audit_page as audit_page
from .graphs import elimination as elimination
from .graphs import lattice as lattice
from .page import page as page
from .pictures import curves as curves
from .pictures import filters as filters
from .pictures import moments as moments
from .pictures import samples as samples
from .segmentation import losses as losses
from .segmentation import segmentation_page as segmentation_page
from .segmentation import segmentations as segmentations
