"""`EstimateWarning`, defined in the core, under the name of this room."""

from lnz._core.estimate_warning import EstimateWarning as EstimateWarning
