from data.tiny_dataset import tiny

__all__ = ["tiny"]
