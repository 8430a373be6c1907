"""What a frozen trunk is worth on labelled images."""
