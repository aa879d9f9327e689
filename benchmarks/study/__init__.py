"""A study: networks trained on one prepared dataset with one recipe, and what came of them, in one folder."""
