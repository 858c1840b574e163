"""lev: which keys can ever receive heavy attention, in one pass, with proof that none was missed."""

from lev import functions
from lev.causal import CausalSketch, Lifetimes
from lev.coreset import Coreset, CoresetSketch, coreset
from lev.heavy import heavy_entries
from lev.lewis import NotConverged, lewis_weights, sensitivities
from lev.lift import LiftedSketch
from lev.parallel import scan
from lev.passes import two_pass
from lev.scores import leverage_scores
from lev.sketch import Sketch, load, merge, universal_set
from lev.store import SketchFileError
from lev.universal import UniversalSet
from lev.window import SlidingWindowSketch

__version__ = "0.1.0"

__all__ = [
    # the sketch
    "Sketch",
    "UniversalSet",
    "merge",
    "scan",
    "load",
    "SketchFileError",
    # other weights than |x|^p
    "functions",
    "LiftedSketch",
    # weighted rows that stand for all
    "coreset",
    "Coreset",
    "CoresetSketch",
    # streams as they come
    "CausalSketch",
    "Lifetimes",
    "SlidingWindowSketch",
    "two_pass",
    # one shot
    "leverage_scores",
    "lewis_weights",
    "sensitivities",
    "universal_set",
    "heavy_entries",
    "NotConverged",
]
