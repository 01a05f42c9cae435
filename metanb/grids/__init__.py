"""What is planned, what is done, how long the rest takes, and the runner of the rest."""
