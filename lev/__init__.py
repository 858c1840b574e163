"""lev: which keys can ever receive heavy attention, in one pass, with proof that none was missed."""

from lev import functions
from lev.coreset import Coreset, coreset
from lev.heavy import heavy_entries
from lev.lewis import NotConverged, lewis_weights, sensitivities
from lev.lift import LiftedSketch
from lev.scores import leverage_scores
from lev.sketch import Sketch, load, merge, universal_set
from lev.store import SketchFileError
from lev.universal import UniversalSet

__version__ = "0.1.0"

__all__ = [
    # the sketch
    "Sketch",
    "UniversalSet",
    "merge",
    "load",
    "SketchFileError",
    # other weights than |x|^p
    "functions",
    "LiftedSketch",
    # weighted rows that stand for all
    "coreset",
    "Coreset",
    # one shot
    "leverage_scores",
    "lewis_weights",
    "sensitivities",
    "universal_set",
    "heavy_entries",
    "NotConverged",
]
