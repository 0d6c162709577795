"""Which errors are a sentence for a user, and which need a traceback."""

import dis


def is_said_by_us(error: BaseException) -> bool:
    """Whether a statement of ours raised an error, which then names what is wrong; anything else needs a traceback."""
    traceback = error.__traceback__
    if traceback is None or not isinstance(error, (ValueError, OSError, RuntimeError)):
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if not str(frame.f_globals.get("__name__")).startswith("nnunet_ext."):
        return False
    # Not what Python itself raises in a line of ours, such as an index out of range: that is a mistake of ours.
    return frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]
