"""Rules for the notebooks of this repository: style, coverage of the outputs, a clean commit."""
