"""How sure is a model, and can it be believed? Six options, their probabilities, and what follows.

Asking (`elicit`) is apart from scoring: every score is computed again from a saved table.
"""
