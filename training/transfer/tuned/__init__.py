"""Fine-tuning and layer locking."""
