"""Pictures of what a step showed."""
