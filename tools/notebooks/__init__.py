"""What we ask of our own notebooks beyond what runs anybody's: rules, coverage, a clean commit."""
