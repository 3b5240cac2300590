"""`clustercert policy`: checks policies before they are used, and explains what they decide."""

import typer

from clustercert.cli import policy_can, policy_explain, policy_replay
from clustercert.cli.options import PolicyFileOption
from clustercert.cli.output import Output, OutputOption, note, row_of, show_list, show_one
from clustercert.cli.session import settings

app = typer.Typer(name="policy", help="Check the policy, and explain what it decides.", no_args_is_help=True)


@app.command("test")
def check_policy(
    context: typer.Context, policy: PolicyFileOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Check a policy, and run its examples. Exit with 1 if it is not valid or an example fails.

    Does not need the database.
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
        show_list(rows, output, columns=["name", "passed", "expected", "decided"])
    if output is Output.TABLE:
        note(f"The policy is valid: {len(tested.rules)} rules, SHA-256 {policy_digest(tested)}.")
        note(f"{len(rows)} examples, {failed} failed." if rows else "It has no examples.")
    if failed:
        raise typer.Exit(1)


app.command("explain")(policy_explain.explain)
app.command("can")(policy_can.can)
app.command("replay")(policy_replay.replay_decisions)
