"""``mixture``: other datasets, mixed by weights that can change from stage to stage."""
