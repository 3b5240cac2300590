"""`clustercert policy`: checks the policy, and explains what it decides."""

import typer

from clustercert.cli.options import PolicyFileOption
from clustercert.cli.policy import explanation, replay
from clustercert.cli.session import settings
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    print_note,
    row_of,
    show_list,
    show_one,
)

_EXAMPLE_COLUMNS = ("name", "passed", "expected", "decided")

app = typer.Typer(name="policy", help="Check the policy, and explain what it decides.", no_args_is_help=True)


@app.command("test")
def check_policy(
    context: typer.Context, policy: PolicyFileOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Check a policy, and run its examples. Exits with status 1 if it is not valid or an example fails.

    Does not need the database.

    Examples:
        clustercert policy test --policy new-policy.toml
    """
    from clustercert.policy.decision import policy_digest
    from clustercert.policy.examples import run_examples

    loaded = settings(context, policy)
    tested = loaded.loaded_policy()
    results = list(run_examples(tested, loaded.policy.examples))
    rows = [row_of(result, "name", "passed", "expected", "decided") for result in results]
    failed = sum(not result.passed for result in results)
    if output in (Output.JSON, Output.YAML):
        rules = [rule.name for rule in tested.rules]
        show_one({"sha256": policy_digest(tested), "rules": rules, "examples": rows}, output)
    elif rows:
        # If examples failed, a table lists only the failed examples.
        shown = [row for row in rows if not row["passed"]] if failed and output is Output.TABLE else rows
        show_list(shown, output, columns=_EXAMPLE_COLUMNS, keep=_EXAMPLE_COLUMNS[2:] if failed else ())
    if output is Output.TABLE:
        print_note(f"The policy is valid: {len(tested.rules)} rules, SHA-256 {policy_digest(tested)}.")
        if policy is None:
            print_note("`clustercert db check` checks the other settings.")
        print_note(f"{len(rows)} examples, {failed} failed." if rows else "The policy has no examples.")
    if failed:
        raise typer.Exit(1)


app.command("explain")(explanation.explain_user)
app.command("replay")(replay.replay)
