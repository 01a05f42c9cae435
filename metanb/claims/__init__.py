"""From records to verdicts: statistics of runs, cells of runs, the rules, the ledger."""
