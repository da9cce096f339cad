"""Dreams: rollouts of controllers inside M, as native code, on a GPU and as Gymnasium environments."""

from worldmodels.dream.native import Dream as Dream
from worldmodels.dream.native import DreamResult as DreamResult
from worldmodels.dream.native import DreamTrace as DreamTrace
from worldmodels.dream.world_model import World as World
from worldmodels.dream.world_model import load_world as load_world
