import pytest

from clustercert.pki.keys import accepted_key, key_type_of, sample_key


@pytest.mark.parametrize(
    "key_type", ["ec-p256", "ec-p384", "ed25519", "rsa-2048", "rsa-2056", "rsa-3072", "rsa-4096"]
)
def test_a_key_of_each_accepted_type_can_be_stood_in_for(key_type: str) -> None:
    key = sample_key(key_type)
    assert key_type_of(key) == key_type
    assert accepted_key(key) is key


@pytest.mark.parametrize("key_type", ["", "rsa", "rsa-1024", "rsa-8192", "rsa-2048 ", "ec-p521", "dsa"])
def test_no_key_stands_in_for_a_type_that_is_not_accepted(key_type: str) -> None:
    with pytest.raises(ValueError, match="unknown type of key"):
        sample_key(key_type)
