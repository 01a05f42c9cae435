"""The square on which a portrait's surface, or its film, is computed and drawn."""

DRAWN = 19  # points per side
FILMED = 25  # points per side of a film's pictures
BEYOND = (-0.4, 1.4)  # the edges, in units of the furthest coordinate of a trajectory
