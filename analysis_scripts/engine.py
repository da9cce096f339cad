"""TakeCover with the positions and velocities of the engine: for the scripts beside this one."""

from __future__ import annotations

import vizdoom

from worldmodels.envs.take_cover import TakeCoverEnv


class TakeCoverObjects(TakeCoverEnv):
    """TakeCover whose engine lists the objects of the map."""

    def _configure(self, game, screen):
        super()._configure(game, screen)
        game.set_objects_info_enabled(True)

    def objects(self):
        """Player (x, y, vx, vy), flying fireballs by id, the same for each, and the monsters (N, 4)."""
        player, fireballs, monsters = None, {}, []
        for thing in self._game.get_state().objects:
            state = thing.position_x, thing.position_y, thing.velocity_x, thing.velocity_y
            if thing.name == "DoomPlayer":
                player = state
            elif thing.name == "DoomImpBall" and thing.velocity_x:  # an explosion is at rest
                fireballs[thing.id] = state
            elif thing.name == "DoomImp":
                monsters.append(state)
        return player, fireballs, monsters

    def health(self):
        """Health of the player, 100 at the start."""
        return self._game.get_game_variable(vizdoom.GameVariable.HEALTH)
