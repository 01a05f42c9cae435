"""From image files to tasks: data sets, their checked cache, the draw of tasks."""
