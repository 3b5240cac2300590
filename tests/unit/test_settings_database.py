import pytest
from pydantic import ValidationError

from clustercert.settings import Settings


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://clustercert@db/clustercert", "expected a URL like postgresql+asyncpg://"),
        ("postgresql+asyncpg://clustercert@db/clustercert?sslmode=require", "use ?ssl=require"),
        (
            "postgresql+asyncpg://clustercert@db/clustercert?target_session_attrs=any",
            "would read from a standby",
        ),
    ],
)
def test_an_address_the_driver_rejects_is_refused_with_a_correction(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match="database_url") as refused:
        Settings(database_url=url)
    assert said in str(refused.value)
