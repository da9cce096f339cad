"""CMA-ES and the spaces it searches; needs neither PyTorch nor a game."""

from worldmodels.cmaes.cmaes import CMAES as CMAES
from worldmodels.cmaes.cmaes import CMAESResult as CMAESResult
