"""All trainers, for nnU-Net's search of ``nnUNet_extTrainer``.

nnU-Net imports this file as a top-level module and forgets it after each search. The classes are those of the installed
package, so every search gives the same class. Names with a length are made when they are asked for.
"""

from nnunet_ext.trainers import *  # noqa: F403 - the list is kept there, once
from nnunet_ext.trainers import __all__ as __all__
from nnunet_ext.trainers import __getattr__ as __getattr__
