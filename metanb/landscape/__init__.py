"""From a network to numbers about its loss landscape: curvature, coherence, spectra, slices."""
