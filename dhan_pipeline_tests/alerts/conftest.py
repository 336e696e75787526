from collections.abc import Iterator

import pytest

from dhan_pipeline_tests.receivers import Receiver, receiver


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as received:
        yield received
