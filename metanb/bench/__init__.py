"""metanb beside its peers: time and error. No other part of the package imports it."""
