"""RabbitMQ as both ends of the lanes see it: connecting, what goes wrong in words, exchanges and queues.

`outlet` is the end of the capture, `inlet` that of a worker, `dead_letters` what workers could not use.
"""

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES

#: Bodies of the lanes go to this exchange; the routing key is the lane's number.
EXCHANGE = "dhan.blocks"

#: The exchange and the queue of dead letters; the routing key is the number of the lane that they come from.
DEAD = "dhan.dead"


class BrokerError(PipelineError):
    """RabbitMQ is away, refuses, or takes nothing. One sentence, never with a password."""


class QueueFullError(BrokerError):
    """Lanes have refused their bodies: the workers are behind. All other lanes have confirmed theirs."""

    def __init__(self, message: str, lanes: tuple[int, ...]) -> None:
        super().__init__(message)
        self.lanes = lanes
        """What has refused."""


def queue_name(lane: int) -> str:
    """The queue of a lane."""
    return f"{EXCHANGE}.{lane}"


#: All queues.
QUEUES = (*map(queue_name, range(FIRST_LANE, FIRST_LANE + LANES)), DEAD)


def check_url(url: str) -> str:
    """The URL. Raises BrokerError for what is no amqp:// or amqps:// address, without quoting it."""
    raise NotImplementedError
