"""Reading the user's data and writing results: arrays in, arrays out, and every refusal a `DataError` of one line."""

from .arrays import load as load
from .check import check as check
from .conll import Sentences as Sentences
from .conll import read_conll as read_conll
from .data import Data as Data
from .data import DataError as DataError
from .digits import digits as digits
from .files import WriteError as WriteError
from .files import write_atomic as write_atomic
from .prepare import Split as Split
from .prepare import binarise as binarise
from .prepare import split as split
from .samples import save_samples as save_samples
from .uai import read_uai as read_uai
from .uai import read_uai_evidence as read_uai_evidence
from .uai import read_uai_mar as read_uai_mar
from .uai import read_uai_pr as read_uai_pr
from .uai import write_uai as write_uai
from .uai import write_uai_evidence as write_uai_evidence
from .uai import write_uai_mar as write_uai_mar
from .uai import write_uai_pr as write_uai_pr
