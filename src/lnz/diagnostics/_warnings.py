"""The warnings of an estimate, which the core defines, under the name of this room."""

from lnz._core.estimate_warning import EstimateWarning as EstimateWarning
