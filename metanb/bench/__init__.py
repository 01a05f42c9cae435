"""The benchmark behind `metanb bench`: time and error of metanb beside its peers.

It is part of the installed package, and not a folder of scripts beside it, because it is a command
that everybody who installs metanb can give. No other folder of the package imports it.
"""
