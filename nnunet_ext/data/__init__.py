"""Cases: where they lie, how they are read, preprocessed and loaded."""
