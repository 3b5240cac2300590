"""Dependencies of the administration API: callers with the rights that its routes need."""

from typing import Annotated

from fastapi import Depends

from clustercert.http.api.administration.changes import Change, ChangeDep
from clustercert.http.dependencies import Call, CallDep
from clustercert.policy.rules import require_admin, require_operator


async def operator_call(call: CallDep) -> Call:
    """Return the call of an operator. Raises Forbidden."""
    require_operator(call.caller)
    return call


OperatorCall = Annotated[Call, Depends(operator_call)]


async def operator_change(_operator: OperatorCall, change: ChangeDep) -> Change:
    """Return the change of an operator. Raises Forbidden, or InvalidRequest for bad preconditions."""
    return change


OperatorChange = Annotated[Change, Depends(operator_change)]


async def admin_call(call: CallDep, project_id: str) -> Call:
    """Return the call of an operator or an admin of the project. Raises NotFound or Forbidden."""
    require_admin(call.caller, project_id)
    return call


AdminCall = Annotated[Call, Depends(admin_call)]


async def admin_change(_admin: AdminCall, change: ChangeDep) -> Change:
    """Return the change of an operator or an admin of the project. Raises NotFound, Forbidden or InvalidRequest."""
    return change


AdminChange = Annotated[Change, Depends(admin_change)]
