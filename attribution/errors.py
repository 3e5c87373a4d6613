"""Every error that a person can act on. Messages name the value, what is accepted and what to do.

AttributionError
  InputError          a value from outside is wrong: exit status 2, a toast on the page
  IndexMismatch       an index that is missing, foreign, truncated or made with other settings
  WeightsUnavailable  a model whose weights cannot be had here
  WorkFailed          work that a library's error ended, such as a device out of memory
  DeviceUnavailable   a lent GPU that is not lent now
  NotKept             an answer that is there, but could not be written down
  Stopped             the work was stopped on request
"""

HUB = "a machine that reaches the hub (HF_ENDPOINT, HF_TOKEN, HF_HOME are honoured)"


def reason(error: Exception) -> str:
    """The first line of a library's error, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class AttributionError(Exception):
    """Base of this package's errors."""


class InputError(AttributionError):
    """A prompt, image, box, seed or number that is not acceptable."""


class IndexMismatch(AttributionError):
    """An index folder that cannot be used as it is."""


class WeightsUnavailable(AttributionError):
    """Weights that are neither on disk nor reachable."""


class WorkFailed(AttributionError):
    """Work for the device that a library's error ended; nothing was changed."""


class DeviceUnavailable(AttributionError):
    """A GPU that is lent to each job cannot be had for this one."""


class NotKept(AttributionError):
    """An answer that stands, but could not be written down to be opened again."""


class Stopped(AttributionError):
    """The work was stopped on request; nothing was changed."""
