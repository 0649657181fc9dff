"""What the softmax of a model may be called. Imports nothing, so that the command line can ask at once."""


def confidence_name(passed: bool) -> str:
    """What a calibrated softmax may be called, with and without a passing report.

    >>> confidence_name(False), confidence_name(True)
    ('softmax score', 'probability')
    """
    return "probability" if passed else "softmax score"
