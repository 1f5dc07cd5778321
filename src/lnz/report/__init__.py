"""Pictures of a run, and one page that shows them."""

from .page import page as page
from .pictures import curves as curves
from .pictures import filters as filters
from .pictures import moments as moments
from .pictures import samples as samples
