"""TakeCover with the positions and velocities of the engine: helpers of the other scripts."""

from __future__ import annotations

import vizdoom

from worldmodels.envs.take_cover import TakeCoverEnv


class TakeCoverObjects(TakeCoverEnv):
    """TakeCover whose engine reports the objects of the map."""

    def _configure(self, game, screen):
        super()._configure(game, screen)
        game.set_objects_info_enabled(True)

    def objects(self):
        """Return (x, y, vx, vy) of the player, of the flying fireballs by id, and of the N monsters."""
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
        """Return the health of the player, 100 at the start."""
        return self._game.get_game_variable(vizdoom.GameVariable.HEALTH)
