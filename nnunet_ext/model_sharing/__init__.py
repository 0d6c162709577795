"""What lies in the folder of a trained model: its files, export, pruning, what is private."""
