"""From records, rows and portraits to figures and tables."""
