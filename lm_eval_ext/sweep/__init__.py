"""Many steering plans on the same questions, for little more than one evaluation."""
