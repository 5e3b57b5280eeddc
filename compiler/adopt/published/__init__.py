"""What projects publish: one file for each family that `edgewright adopt` knows, of the same name as the family's."""
