"""Which client sent a request, by the product names in its User-Agent header. Used only to choose a response's format.

Source: RFC 9110, sections 5.6.5 (comments) and 10.1.5 (User-Agent).
"""

from collections.abc import Iterable, Iterator

# The SDKs of Huawei Cloud: `huaweicloud-usdk-go`, -java, -nodejs, -python, -net and -php.
_HUAWEI_SDK = "huaweicloud-usdk-"
_HUAWEI_TERRAFORM = "terraform-provider-iac"

Headers = Iterable[tuple[bytes, bytes]]


def is_huawei_sdk(headers: Headers) -> bool:
    """Whether one of Huawei Cloud's SDKs sent the request. `headers` has lower-case names."""
    user_agent = _user_agent(headers)
    # Most clients are not such SDKs, so their headers need no parsing.
    return _HUAWEI_SDK in user_agent and any(name.startswith(_HUAWEI_SDK) for name in _products(user_agent))


def is_huawei_terraform(headers: Headers) -> bool:
    """Whether Huawei Cloud's Terraform provider sent the request. `headers` has lower-case names.

    The provider puts the value of the variable HW_TF_CUSTOM_UA before its own name.
    """
    user_agent = _user_agent(headers)
    return _HUAWEI_TERRAFORM in user_agent and _HUAWEI_TERRAFORM in _products(user_agent)


def _user_agent(headers: Headers) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == b"user-agent"), "")


def _products(user_agent: str) -> Iterator[str]:
    """Yield the names of the products, without their versions.

    Clients separate products by white space. Some SDKs add a semicolon, as in `huaweicloud-usdk-go/3.0; linux`.
    """
    for word in _without_comments(user_agent).split():
        yield word.partition("/")[0].rstrip(";")


def _without_comments(user_agent: str) -> str:
    """Remove the text of comments. A comment may contain comments and, after a backslash, any character.

    Keeps one parenthesis of each comment, so that a word next to a comment does not begin after the comment.
    """
    kept: list[str] = []
    depth, quoted = 0, False
    for character in user_agent:
        if quoted:
            quoted = False
        elif depth and character == "\\":
            quoted = True
        elif character == "(":
            depth += 1
        elif depth and character == ")":
            depth -= 1
            kept.append(character)
        elif not depth:
            kept.append(character)
    return "".join(kept)
