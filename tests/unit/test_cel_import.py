"""The CEL library is loaded without its interactive terminal, whose packages the container image does not have."""

import subprocess
import sys

CODE = """
import sys
sys.modules["prompt_toolkit"] = sys.modules["wcwidth"] = sys.modules["pygments"] = None
from clustercert.policy.expressions import compile_expression
assert compile_expression("user.name == 'a'").execute({"user": {"name": "a"}}) is True
"""


def test_an_expression_is_evaluated_without_the_packages_of_a_terminal() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
