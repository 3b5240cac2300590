import pytest
from pydantic import ValidationError

from clustercert.settings import Settings


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://clustercert@db/clustercert", "write it like postgresql+asyncpg://"),
        ("postgresql+asyncpg://clustercert@db/clustercert?sslmode=require", "write ?ssl=require"),
    ],
)
def test_an_address_that_the_driver_would_not_take_is_refused_with_the_right_spelling(
    url: str, said: str
) -> None:
    with pytest.raises(ValidationError, match="database_url") as refused:
        Settings(database_url=url)
    assert said in str(refused.value)
