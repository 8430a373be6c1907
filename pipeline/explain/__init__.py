"""What a step of a run showed, and what each countermeasure does."""
