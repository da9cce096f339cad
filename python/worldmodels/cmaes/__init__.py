"""CMA-ES and its search spaces; works without PyTorch and without a game."""

from worldmodels.cmaes.cmaes import CMAES as CMAES
from worldmodels.cmaes.cmaes import CMAESResult as CMAESResult
