# The public names of lnz.diagnostics. `__init__.py` loads each name from its module when it is first used.
from ._audit_report import AuditReport as AuditReport
from ._audit_report import Check as Check
from ._chains import Diagnosis as Diagnosis
from ._chains import ess as ess
from ._chains import r_hat as r_hat
from ._warnings import EstimateWarning as EstimateWarning
