"""Which networks are counted and measured: those of the paper's tables, and the forms in which they run."""
