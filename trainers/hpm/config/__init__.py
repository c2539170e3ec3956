"""Every setting of pretraining: frozen dataclasses, their defaults, and the rules between fields.

The defaults are the official scripts' (ViT-B/16, 200 epochs), but for the precision: bfloat16 where
they scale losses for float16. A field here is science: it changes what is computed, so it is part
of a run's identity. Where and how fast a run goes is not here.
"""

from hpm.config.data import Data, min_crop_rule
from hpm.config.mask import Mask
from hpm.config.network import Decoder, Encoder, Predictor, Role
from hpm.config.optim import Ema, Optim
from hpm.config.pretrain import Pretrain, Watch, fits
from hpm.config.target import Target

__all__ = [
    "Data",
    "Decoder",
    "Ema",
    "Encoder",
    "Mask",
    "Optim",
    "Predictor",
    "Pretrain",
    "Role",
    "Target",
    "Watch",
    "fits",
    "min_crop_rule",
]
