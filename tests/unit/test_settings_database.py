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
        ("postgresql+asyncpg://clustercert@db/clustercert?ssl=yes", "ssl must be one of disable, allow, "),
        ("postgresql+asyncpg://clustercert@db:port/clustercert", "the port must be a number"),
        ("postgresql+asyncpg://clustercert@[::1/clustercert", "the port must be a number"),
        ("postgresql+asyncpg://clustercert@db:54321000/clustercert", "the port must be between 1 and 65535"),
        ("postgresql+asyncpg://clustercert@db:0/clustercert", "the port must be between 1 and 65535"),
        ("sqlite+aiosqlite:///", "the path of the file is missing"),
    ],
)
def test_an_address_the_driver_rejects_is_refused_with_a_correction(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match="database_url") as refused:
        Settings(database_url=url)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://clustercert:p%40ss@db:5432/clustercert?ssl=verify-full",
        "postgresql+asyncpg://clustercert@[::1]/clustercert",
        "postgresql+asyncpg://clustercert@/clustercert?host=one:5432&host=two:5432",
        "sqlite+aiosqlite:////var/lib/clustercert/clustercert.db",
    ],
)
def test_other_addresses_are_left_to_the_driver(url: str) -> None:
    assert Settings(database_url=url).database_url == url
