from data.tiny_dataset import tiny
from data.two_streams import make

__all__ = ["make", "tiny"]
