"""What trainers are made of."""
