"""Gates of pseudo-labels that do what a test says."""


class GateOf:
    """A gate that keeps what a function of logits, labels, confidence and valid mask returns; no class is silent."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def silent(self):
        return None

    def state_dict(self):
        return {}
