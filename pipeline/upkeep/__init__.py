"""What one does with an output besides making it: look, check, tidy, pack."""
