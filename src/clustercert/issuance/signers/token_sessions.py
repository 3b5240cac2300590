"""Sessions with a PKCS#11 token: a bounded number of threads, each with a separate session.

A call into a module can hang, and can't be cancelled. So the threads are daemon threads, because the process does not
wait for daemon threads when it ends.
"""

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from clustercert.model.errors import ClustercertError, SignerError, Unavailable
from clustercert.pki.cryptoki import Cryptoki, CryptokiError, CryptokiSession, CryptokiToken, suppress_values
from clustercert.pki.cryptoki_codes import CKR
from clustercert.secure_file import PrivateFileError, read_private_file

logger = structlog.get_logger()

T = TypeVar("T")

# The longest time to wait until no thread is in a call, before the module is initialised or finalised.
_QUIET_SECONDS = 1.0
# The longest time for repeated attempts to initialise the module.
_INITIALIZE_SECONDS = 0.5
# The longest time to wait until the threads have closed their sessions.
_CLOSE_SECONDS = 1.0
_CLOSE_INTERVAL = 0.01
_MAX_PIN_BYTES = 1024

# After these errors, the module is initialised again. A new session alone is not enough: other threads could use stale
# handles, which may stand for other sessions and keys meanwhile.
_LOST = {
    CKR.CRYPTOKI_NOT_INITIALIZED,
    CKR.DEVICE_ERROR,
    CKR.DEVICE_REMOVED,
    CKR.FUNCTION_FAILED,
    CKR.GENERAL_ERROR,
    CKR.KEY_HANDLE_INVALID,
    CKR.OBJECT_HANDLE_INVALID,
    CKR.OPERATION_ACTIVE,
    CKR.OPERATION_NOT_INITIALIZED,
    CKR.SESSION_CLOSED,
    CKR.SESSION_HANDLE_INVALID,
    CKR.SLOT_ID_INVALID,
    CKR.TOKEN_NOT_PRESENT,
    CKR.TOKEN_NOT_RECOGNIZED,
    CKR.USER_NOT_LOGGED_IN,
}
# Initialising the module does not help against these errors.
_BUSY = {CKR.DEVICE_MEMORY, CKR.HOST_MEMORY, CKR.SESSION_COUNT, CKR.TOKEN_RESOURCE_EXCEEDED}
_PIN_REFUSED = {
    CKR.PIN_EXPIRED,
    CKR.PIN_INCORRECT,
    CKR.PIN_INVALID,
    CKR.PIN_LEN_RANGE,
    CKR.PIN_LOCKED,
    CKR.USER_PIN_NOT_INITIALIZED,
}


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """The token to use, and its PIN. A label or serial of None matches every token."""

    module: Path
    label: str | None
    serial: str | None
    pin_file: Path

    @property
    def name(self) -> str:
        """The token's name for messages."""
        return self.label or f"with the serial number {self.serial}"


@dataclass(slots=True)
class LoggedInSession:
    """A session in which the user is logged in.

    Attributes:
        handles: handles of CAs' private keys in this session, by the id of the CA.
        generation: the module's generation when the session was opened.
    """

    session: CryptokiSession
    token: CryptokiToken
    generation: int
    handles: dict[str, int] = field(default_factory=dict)


class TokenSessions:
    """Runs operations in sessions with a token. Opens the module and the sessions at first use.

    After a lost session or connection, connects again and repeats the operation once.
    """

    def __init__(self, address: TokenAddress, threads: int) -> None:
        self.address = address
        self._thread_count = threads
        self._threads: list[_SessionThread] = []
        self._jobs: _Jobs = queue.SimpleQueue()
        self._login = Login(address)
        self._availability = _Availability(address.name)
        self._pid = os.getpid()

    async def run(self, operation: Callable[[LoggedInSession], T]) -> T:
        """Run an operation in one of the threads. The operation may run twice, so repeating it must be harmless.

        Raises SignerError or Unavailable, and what the operation raises. A cancelled operation goes on if it has begun.
        """
        if os.getpid() != self._pid:
            raise SignerError(_FORKED)
        if not self._threads:
            self._threads = [
                _SessionThread(number, self.address, self._login, self._availability, self._jobs)
                for number in range(self._thread_count)
            ]
        # The caller limits the number of operations, so more jobs wait only if calls hang.
        if self._jobs.qsize() >= self._thread_count:
            raise Unavailable(
                f"The token {self.address.name} does not answer: all calls to its PKCS#11 module hang. Try again later."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(operation, loop, future))
        return await future

    async def close(self) -> None:
        """Close the sessions and the module. Threads in calls that hang are left alone; they end with the process."""
        jobs, threads = self._jobs, self._threads
        self._jobs, self._threads = queue.SimpleQueue(), []
        with contextlib.suppress(queue.Empty):
            while (job := jobs.get_nowait()) is not None:
                job.future.cancel()
        for _ in threads:
            jobs.put(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110 - threads set no event of a loop
                    await asyncio.sleep(_CLOSE_INTERVAL)


class _Job:
    """An operation that waits for a thread. `future` gets the operation's result."""

    def __init__(
        self,
        operation: Callable[[LoggedInSession], object],
        loop: asyncio.AbstractEventLoop,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.operation = operation
        self.future = future
        self._loop = loop

    def finish(self, result: object, error: BaseException | None) -> None:
        """Set the result or the error, from any thread."""
        # The loop is closed if the process ends while a call hangs.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: object, error: BaseException | None) -> None:
        if self.future.cancelled():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


_Jobs = queue.SimpleQueue[_Job | None]


class _SessionThread(threading.Thread):
    """A thread with a session. Ends when it gets None instead of a job."""

    def __init__(
        self,
        number: int,
        address: TokenAddress,
        login: "Login",
        availability: "_Availability",
        jobs: "_Jobs",
    ) -> None:
        super().__init__(name=f"pkcs11-{number}", daemon=True)
        self._address = address
        self._login = login
        self._availability = availability
        self._jobs = jobs
        self._module: _Module | None = None
        self._connection: LoggedInSession | None = None
        self.start()

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.cancelled():
                try:
                    result = self._result(job.operation)
                except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                    job.finish(None, error)
                else:
                    job.finish(result, None)
            del job
        with contextlib.suppress(ClustercertError, CryptokiError):
            self._close()

    def _result(self, operation: Callable[[LoggedInSession], T]) -> T:
        name = self._address.name
        try:
            result = self._attempts(operation)
        except CryptokiError as error:
            if error.value not in _LOST | _BUSY:
                raise SignerError(f"The token {name} refused an operation ({error}).") from error
            self._availability.report(str(error))
            raise Unavailable(f"The token {name} is not available ({error}). Try again later.") from error
        self._availability.report(None)
        return result

    def _attempts(self, operation: Callable[[LoggedInSession], T]) -> T:
        if self._module is None:
            module = _module_at(self._address.module)
            module.acquire()
            self._module = module
        try:
            with self._module.in_use() as generation:
                return operation(self._connected(self._module))
        except CryptokiError as error:
            if error.value not in _LOST:
                raise
        self._module.reconnect(generation)
        with self._module.in_use():
            return operation(self._connected(self._module))

    def _connected(self, module: "_Module") -> LoggedInSession:
        """Return this thread's connection. Opens a session if there is none since the module was initialised."""
        if self._connection is None or self._connection.generation != module.generation:
            self._connection = None
            token = self._token(module.cryptoki)
            session = module.cryptoki.open_session(token.slot)
            try:
                self._login.log_in(session, token)
            except BaseException:
                with contextlib.suppress(CryptokiError):
                    session.close()
                raise
            self._connection = LoggedInSession(session, token, module.generation)
        return self._connection

    def _token(self, cryptoki: Cryptoki) -> CryptokiToken:
        label, serial = self._address.label, self._address.serial
        found = [
            token
            for token in cryptoki.tokens()
            if label in (None, token.label) and serial in (None, token.serial)
        ]
        if len(found) > 1:
            serials = ", ".join(token.serial for token in found)
            raise SignerError(
                f"{len(found)} tokens have the label {label}. The operator must set signers.pkcs11.serial to one of"
                f" these serial numbers: {serials}."
            )
        if not found:
            # The token may come back, for example after its device was restarted.
            raise CryptokiError("C_GetSlotList", CKR.TOKEN_NOT_PRESENT)
        return found[0]

    def _close(self) -> None:
        if self._module is None:
            return
        with contextlib.suppress(CryptokiError), self._module.in_use() as generation:
            if self._connection is not None and self._connection.generation == generation:
                self._connection.session.close()
        self._module.release()


class _Availability:
    """Logs when the token becomes unavailable or available, for all threads together."""

    def __init__(self, token_name: str) -> None:
        self._token_name = token_name
        self._lock = threading.Lock()
        self._is_available = True

    def report(self, failure: str | None) -> None:
        """Report the outcome of an operation: what failed, or None."""
        is_available = failure is None
        if is_available == self._is_available:
            return
        with self._lock:
            has_changed = is_available != self._is_available
            self._is_available = is_available
        # The log redacts fields named `token`.
        if has_changed and is_available:
            logger.info("PKCS#11 token available again", label=self._token_name)
        elif has_changed:
            logger.warning("PKCS#11 token not available", label=self._token_name, cause=failure)


class Login:
    """Logs in to a token, and stops after a refused PIN, because tokens lock themselves after a few wrong PINs."""

    def __init__(self, address: TokenAddress) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._refused_pin: bytes | None = None

    def log_in(self, session: CryptokiSession, token: CryptokiToken) -> None:
        """Log in, unless another session of this process is logged in.

        Raises SignerError if the PIN can't be read or was refused, and CryptokiError for any other failure.
        """
        with self._lock:
            if session.is_logged_in():
                return
            pin = self._read_pin()
            name = self._address.name
            if pin == self._refused_pin:
                raise SignerError(
                    f"The token {name} has refused the PIN. To avoid locking the token, the service does not try again"
                    " until the operator corrects the file signers.pkcs11.pin_file or restarts the service."
                )
            if token.is_pin_locked or token.is_final_try:
                state = "is locked" if token.is_pin_locked else "locks itself after one more wrong PIN"
                raise SignerError(
                    f"The token {name} {state}, so the service does not log in. The operator must log in once with"
                    " another program, or reset the PIN."
                )
            try:
                session.login(pin)
            except CryptokiError as error:
                if error.value not in _PIN_REFUSED:
                    raise
                self._refused_pin = pin
                logger.error(  # noqa: TRY400 - a traceback would add nothing
                    "PKCS#11 token refused the PIN: no further attempt until the file changes",
                    label=name,
                    file=str(self._address.pin_file),
                    cause=str(error),
                )
                raise SignerError(
                    f"The token {name} refused the PIN ({error}). The operator must correct the file "
                    "signers.pkcs11.pin_file; until then, the service does not try again."
                ) from error

    def _read_pin(self) -> bytes:
        try:
            pin = read_private_file(self._address.pin_file, _MAX_PIN_BYTES).rstrip(b"\r\n")
        except PrivateFileError as error:
            raise SignerError(f"signers.pkcs11.pin_file: {error}") from None
        except OSError as error:
            raise SignerError(
                f"Can't read the file signers.pkcs11.pin_file: {error.strerror}. The operator must provide the file."
            ) from error
        if not pin:
            raise SignerError(
                "The file signers.pkcs11.pin_file is empty. The operator must write the PIN to this file."
            )
        return pin


_FORKED = (
    "This process has inherited an open PKCS#11 module from its parent process, and can't use it. Use the module only"
    " after the fork."
)


class _Module:
    """A module in this process. A module has one state for the whole process, so all signers share this object.

    Attributes:
        generation: rises when the module is initialised again. Sessions of earlier generations are closed.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.cryptoki = Cryptoki(path)
        except OSError as error:
            raise SignerError(
                "The PKCS#11 module can't be loaded. The operator must correct signers.pkcs11.module."
            ) from error
        self.generation = 0
        self._pid = os.getpid()
        self._state = threading.Condition()
        self._calls = 0
        self._users = 0
        self._most_users = 0
        # Whether a thread initialises or finalises the module.
        self._is_changing = False

    def acquire(self) -> None:
        """Initialise the module for its first user. Each user must call `release` later."""
        with self._exclusively():
            if not self._users:
                self._initialize()
            self._users += 1
            self._most_users = max(self._most_users, self._users)

    def release(self) -> None:
        """Finalise the module after its last user."""
        with self._exclusively():
            self._users -= 1
            if not self._users:
                self.cryptoki.finalize()

    def reconnect(self, generation: int) -> None:
        """Initialise the module again, unless another thread has done this since `generation`."""
        with self._exclusively():
            if self.generation == generation:
                self.generation += 1
                # If the device is gone, finalising fails, too.
                with contextlib.suppress(CryptokiError):
                    self.cryptoki.finalize()
                self._initialize()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[int]:
        """Prevent other threads from initialising or finalising the module during the `with` block.

        Yields the generation.
        """
        self._check_process()
        with self._state:
            if self._is_changing:
                self._wait_until(lambda: not self._is_changing)
            self._calls += 1
        try:
            yield self.generation
        finally:
            with self._state:
                self._calls -= 1
                if self._is_changing:
                    self._state.notify_all()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Wait until no thread uses the module, and prevent its use during the `with` block."""
        self._check_process()
        with self._state:
            self._wait_until(lambda: not self._is_changing)
            self._is_changing = True
        try:
            with self._state:
                self._wait_until(lambda: not self._calls)
            yield
        finally:
            with self._state:
                self._is_changing = False
                self._state.notify_all()

    def _wait_until(self, predicate: Callable[[], bool]) -> None:
        if not self._state.wait_for(predicate, _QUIET_SECONDS):
            raise Unavailable("A call to the PKCS#11 module hangs. Try again later.")

    def _initialize(self) -> None:
        begin = time.monotonic()
        # A module may keep a broken connection for each thread, and drop only one broken connection in each attempt.
        for _ in range(self._most_users):
            try:
                return self._initialize_once()
            except CryptokiError as error:
                if error.value not in _LOST or time.monotonic() - begin > _INITIALIZE_SECONDS:
                    raise
        return self._initialize_once()

    def _initialize_once(self) -> None:
        # Other code in this process may use the same module.
        with suppress_values(CKR.CRYPTOKI_ALREADY_INITIALIZED):
            self.cryptoki.initialize()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise SignerError(_FORKED)


_modules: dict[Path, _Module] = {}
_modules_lock = threading.Lock()


def _module_at(path: Path) -> _Module:
    with _modules_lock:
        key = path.resolve()
        if key not in _modules:
            _modules[key] = _Module(key)
        return _modules[key]
