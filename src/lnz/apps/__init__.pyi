# The public names of lnz.apps. `__init__.py` loads each name from its module when it is first used.
from ._segmentation.dense_crf import DenseCRF as DenseCRF
from ._segmentation.pixel_metrics import Confusion as Confusion
from ._segmentation.pixel_metrics import confusion as confusion
from ._segmentation.reading import LabelledImages as LabelledImages
from ._segmentation.reading import read_segmentation as read_segmentation
from ._segmentation.segment_training import FittedSegmenter as FittedSegmenter
from ._segmentation.segment_training import fit_segmenter as fit_segmenter
from ._segmentation.segmenter import Prediction as Prediction
from ._segmentation.segmenter import Segmenter as Segmenter
from ._tagging.chunk_metrics import ChunkScore as ChunkScore
from ._tagging.chunk_metrics import chunk_score as chunk_score
from ._tagging.tag_training import FittedTagger as FittedTagger
from ._tagging.tag_training import fit_tagger as fit_tagger
from ._tagging.tagger import Tagged as Tagged
from ._tagging.tagger import Tagger as Tagger
