# The public names of lnz.report. `__init__.py` loads each name from its module when it is first used.
from ._audit_page import audit_page as audit_page
from ._graph_pictures import elimination as elimination
from ._graph_pictures import lattice as lattice
from ._page import page as page
from ._pictures import curves as curves
from ._pictures import filters as filters
from ._pictures import moments as moments
from ._pictures import samples as samples
from ._segmentation_page import losses as losses
from ._segmentation_page import segmentation_page as segmentation_page
from ._segmentation_page import segmentations as segmentations
