"""The square on which a portrait's surface is computed and drawn."""

DRAWN = 19  # points per side
BEYOND = (-0.4, 1.4)  # the edges, in units of the furthest coordinate of a trajectory
