"""The settings of runs that are trained to see what happens around them, not what they learn."""

SMALL = {"ways": 3, "filters": 4, "test_tasks": 2, "test_queries": 2}
