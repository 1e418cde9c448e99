"""Pictures: densities, fields, particles in space and time, sheets of images, comparisons, animations.

Each function returns a matplotlib ``Figure`` that belongs to no window: ``figure.savefig("picture.png")``. Functions that
draw one panel take ``ax=`` to draw into yours. matplotlib is imported when the first picture is made.
"""

from .animation import gif
from .fields import density, samples, vector_field
from .images import image_sheet
from .paths import particles, trajectories
from .style import COLOURS, canvas
from .tables import solver_table
from .training import loss_curve

__all__ = [
    "COLOURS",
    "canvas",
    "density",
    "gif",
    "image_sheet",
    "loss_curve",
    "particles",
    "samples",
    "solver_table",
    "trajectories",
    "vector_field",
]
