"""PixArt initialised from a class-conditional DiT (arXiv 2310.00426, section 2.3).

    from converter.initialisation import init_from_dit

    init_from_dit("DiT-XL-2-256x256.pt", "init.pth")
"""

from .assemble import Initialisation, init_from_dit
from .options import Options

__all__ = ["Initialisation", "Options", "init_from_dit"]
