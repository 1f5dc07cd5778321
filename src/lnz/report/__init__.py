"""Pictures of a run and of an audit, and the pages that show them."""

from .audit_page import audit_page as audit_page
from .page import page as page
from .pictures import curves as curves
from .pictures import filters as filters
from .pictures import moments as moments
from .pictures import samples as samples
