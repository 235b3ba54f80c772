"""Tasks given to an executor, here or on a cluster: small, picklable, and done again where a worker dies."""

from .executors import Workers, chosen_executor
from .tasks import ALONE, AnyExecutor, do_all

__all__ = ["ALONE", "AnyExecutor", "Workers", "chosen_executor", "do_all"]
