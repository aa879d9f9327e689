"""How networks are counted and measured, and what is kept of it."""
