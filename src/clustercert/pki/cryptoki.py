"""A binding of PKCS#11 (Cryptoki) modules: the functions that are needed to create keys and to sign with them.

python-pkcs11 crashes if two threads use a token, and PyKCS11 has the licence GPL. This binding loads the module with
ctypes, which releases the interpreter lock during each call, and initialises the module for use in several threads.

Source: PKCS #11 Specification 3.1. Structures have the platform's alignment; only Windows packs them.
"""

import ctypes
import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_ubyte, c_ulong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustercert.pki.cryptoki_codes import CKR, return_value_name

_Rv = c_ulong
_Handle = c_ulong
_HandlePointer = POINTER(c_ulong)

_CKF_OS_LOCKING_OK = 0x2
_CKF_RW_SESSION, _CKF_SERIAL_SESSION = 0x2, 0x4
_CKF_USER_PIN_FINAL_TRY, _CKF_USER_PIN_LOCKED = 0x20000, 0x40000
_CKU_USER = 1
_USER_STATES = (1, 3)  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS
_UNAVAILABLE = c_ulong(-1).value

# Upper limits of what a module returns. A signature or modulus of RSA with 4096 bits has 512 bytes.
_MAX_SLOTS = 256
_MAX_VALUE = 1024


class Attribute(enum.IntEnum):
    """Attributes of keys. The specification writes the names with the prefix `CKA_`."""

    CLASS = 0x0
    TOKEN = 0x1
    PRIVATE = 0x2
    LABEL = 0x3
    ID = 0x102
    SENSITIVE = 0x103
    DECRYPT = 0x105
    UNWRAP = 0x107
    SIGN = 0x108
    VERIFY = 0x10A
    DERIVE = 0x10C
    MODULUS = 0x120
    MODULUS_BITS = 0x121
    PUBLIC_EXPONENT = 0x122
    EXTRACTABLE = 0x162
    LOCAL = 0x163
    NEVER_EXTRACTABLE = 0x164
    ALWAYS_SENSITIVE = 0x165
    EC_PARAMS = 0x180
    EC_POINT = 0x181


class ObjectClass(enum.IntEnum):
    """Classes of objects. The specification writes the names with the prefix `CKO_`."""

    PUBLIC_KEY = 2
    PRIVATE_KEY = 3


class Mechanism(enum.IntEnum):
    """Mechanisms. The specification writes the names with the prefix `CKM_`."""

    RSA_PKCS_KEY_PAIR_GEN = 0x0
    RSA_PKCS = 0x1
    EC_KEY_PAIR_GEN = 0x1040
    ECDSA = 0x1041


Template = Mapping[Attribute, bool | int | bytes]


class CryptokiError(Exception):
    """A function of the module failed. The message names the function and its return value.

    Attributes:
        function: the function's name, such as `C_Sign`.
        value: the return value (CK_RV).
    """

    def __init__(self, function: str, value: int) -> None:
        super().__init__(f"{function}: {return_value_name(value)}")
        self.function = function
        self.value = value


@dataclass(frozen=True, slots=True)
class CryptokiToken:
    """A token in a slot.

    Attributes:
        is_pin_locked: whether the token refuses every PIN.
        is_final_try: whether one more wrong PIN locks the token.
    """

    slot: int
    label: str
    serial: str
    is_pin_locked: bool
    is_final_try: bool


class _InitializeArgs(ctypes.Structure):
    _fields_ = (
        ("CreateMutex", c_void_p),
        ("DestroyMutex", c_void_p),
        ("LockMutex", c_void_p),
        ("UnlockMutex", c_void_p),
        ("flags", c_ulong),
        ("pReserved", c_void_p),
    )


class _Version(ctypes.Structure):
    _fields_ = (("major", c_ubyte), ("minor", c_ubyte))


class _TokenInfo(ctypes.Structure):
    _fields_ = (
        ("label", c_char * 32),
        ("manufacturerID", c_char * 32),
        ("model", c_char * 16),
        ("serialNumber", c_char * 16),
        ("flags", c_ulong),
        # Limits on sessions, PIN length and memory.
        ("limits", c_ulong * 10),
        ("hardwareVersion", _Version),
        ("firmwareVersion", _Version),
        ("utcTime", c_char * 16),
    )


class _SessionInfo(ctypes.Structure):
    _fields_ = (("slotID", c_ulong), ("state", c_ulong), ("flags", c_ulong), ("ulDeviceError", c_ulong))


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", c_ulong), ("pParameter", c_void_p), ("ulParameterLen", c_ulong))


class _Attribute(ctypes.Structure):
    _fields_ = (("type", c_ulong), ("pValue", c_void_p), ("ulValueLen", c_ulong))


class _FunctionList(ctypes.Structure):
    """CK_FUNCTION_LIST of version 2, which modules of version 3 have too."""

    _fields_ = (("version", _Version), ("functions", c_void_p * 68))


# Functions, with their places in CK_FUNCTION_LIST and the types of their arguments.
_FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "C_Initialize": (0, (POINTER(_InitializeArgs),)),
    "C_Finalize": (1, (c_void_p,)),
    "C_GetSlotList": (4, (c_ubyte, _HandlePointer, _HandlePointer)),
    "C_GetTokenInfo": (6, (c_ulong, POINTER(_TokenInfo))),
    "C_OpenSession": (12, (c_ulong, c_ulong, c_void_p, c_void_p, _HandlePointer)),
    "C_CloseSession": (13, (_Handle,)),
    "C_GetSessionInfo": (15, (_Handle, POINTER(_SessionInfo))),
    "C_Login": (18, (_Handle, c_ulong, c_char_p, c_ulong)),
    "C_DestroyObject": (22, (_Handle, _Handle)),
    "C_GetAttributeValue": (24, (_Handle, _Handle, POINTER(_Attribute), c_ulong)),
    "C_FindObjectsInit": (26, (_Handle, POINTER(_Attribute), c_ulong)),
    "C_FindObjects": (27, (_Handle, _HandlePointer, c_ulong, _HandlePointer)),
    "C_FindObjectsFinal": (28, (_Handle,)),
    "C_SignInit": (42, (_Handle, POINTER(_Mechanism), _Handle)),
    "C_Sign": (43, (_Handle, c_char_p, c_ulong, c_void_p, _HandlePointer)),
    "C_GenerateKeyPair": (
        59,
        (
            _Handle,
            POINTER(_Mechanism),
            POINTER(_Attribute),
            c_ulong,
            POINTER(_Attribute),
            c_ulong,
            _HandlePointer,
            _HandlePointer,
        ),
    ),
}


class Cryptoki:
    """The functions of a module. All methods can block, and raise CryptokiError.

    A module has one state for the whole process. The caller must not finalise the module during another call.
    """

    def __init__(self, path: Path) -> None:
        """Load the module. Raises OSError if the file can't be loaded or is not a PKCS#11 module."""
        library = ctypes.CDLL(str(path))
        try:
            get_function_list = library.C_GetFunctionList
        except AttributeError as error:
            raise OSError(f"{path} has no function C_GetFunctionList") from error
        get_function_list.restype = _Rv
        get_function_list.argtypes = (POINTER(POINTER(_FunctionList)),)
        functions = POINTER(_FunctionList)()
        if value := get_function_list(byref(functions)):
            raise OSError(f"C_GetFunctionList of {path}: {return_value_name(value)}")
        self._library = library
        self._functions = {
            name: ctypes.CFUNCTYPE(_Rv, *types)(functions.contents.functions[place])
            for name, (place, types) in _FUNCTIONS.items()
        }

    def initialize(self) -> None:
        """Initialise the module, with the operating system's locks between threads."""
        self.call("C_Initialize", byref(_InitializeArgs(flags=_CKF_OS_LOCKING_OK)))

    def finalize(self) -> None:
        """Close all sessions and log out."""
        self.call("C_Finalize", None)

    def tokens(self) -> tuple[CryptokiToken, ...]:
        """List the initialised and uninitialised tokens, except those that the module can't read."""
        slots, count = (c_ulong * _MAX_SLOTS)(), c_ulong(_MAX_SLOTS)
        self.call("C_GetSlotList", 1, slots, byref(count))
        found = []
        for slot in slots[: min(count.value, _MAX_SLOTS)]:
            # A token may be removed meanwhile, and another token in the same machine may be of another kind.
            with suppress_values(CKR.TOKEN_NOT_PRESENT, CKR.TOKEN_NOT_RECOGNIZED, CKR.DEVICE_REMOVED):
                found.append(self._token(slot))
        return tuple(found)

    def open_session(self, slot: int) -> "CryptokiSession":
        """Open a session that can also create and delete keys."""
        handle = c_ulong()
        self.call("C_OpenSession", slot, _CKF_RW_SESSION | _CKF_SERIAL_SESSION, None, None, byref(handle))
        return CryptokiSession(self, handle.value)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function. Raises CryptokiError if the function doesn't return CKR_OK."""
        if value := self._functions[name](*arguments):
            raise CryptokiError(name, value)

    def _token(self, slot: int) -> CryptokiToken:
        info = _TokenInfo()
        self.call("C_GetTokenInfo", slot, byref(info))
        return CryptokiToken(
            slot,
            _padded_text(info.label),
            _padded_text(info.serialNumber),
            is_pin_locked=bool(info.flags & _CKF_USER_PIN_LOCKED),
            is_final_try=bool(info.flags & _CKF_USER_PIN_FINAL_TRY),
        )


class CryptokiSession:
    """A session with a token. Only one thread at a time may use a session. All methods raise CryptokiError."""

    def __init__(self, cryptoki: Cryptoki, handle: int) -> None:
        self._call = cryptoki.call
        self._handle = handle
        self._signature = ctypes.create_string_buffer(_MAX_VALUE)

    def close(self) -> None:
        self._call("C_CloseSession", self._handle)

    def is_logged_in(self) -> bool:
        """Whether the user is logged in. The login is valid for all sessions of this process with the token."""
        info = _SessionInfo()
        self._call("C_GetSessionInfo", self._handle, byref(info))
        return info.state in _USER_STATES

    def login(self, pin: bytes) -> None:
        """Log the user in. A wrong PIN counts as a failed attempt, and some of them lock the token."""
        with suppress_values(CKR.USER_ALREADY_LOGGED_IN):
            self._call("C_Login", self._handle, _CKU_USER, pin, len(pin))

    def find(self, object_class: ObjectClass, key_id: bytes) -> list[int]:
        """Return the handles of at most 16 objects with this CKA_ID."""
        handles, count = (c_ulong * 16)(), c_ulong()
        template: Template = {Attribute.CLASS: int(object_class), Attribute.ID: key_id}
        with _attributes(template) as (attributes, length):
            self._call("C_FindObjectsInit", self._handle, attributes, length)
        try:
            self._call("C_FindObjects", self._handle, handles, len(handles), byref(count))
        finally:
            self._call("C_FindObjectsFinal", self._handle)
        return handles[: min(count.value, len(handles))]

    def read(self, handle: int, attribute: Attribute) -> bytes:
        """Read an attribute of an object."""
        buffer = ctypes.create_string_buffer(_MAX_VALUE)
        value = _Attribute(attribute, ctypes.addressof(buffer), _MAX_VALUE)
        self._call("C_GetAttributeValue", self._handle, handle, byref(value), 1)
        if value.ulValueLen == _UNAVAILABLE or value.ulValueLen > _MAX_VALUE:
            raise CryptokiError("C_GetAttributeValue", CKR.ATTRIBUTE_TYPE_INVALID)
        return buffer.raw[: value.ulValueLen]

    def generate_key_pair(self, mechanism: Mechanism, public: Template, private: Template) -> tuple[int, int]:
        """Generate a key pair in the token. Returns the handles of the public and of the private key."""
        public_handle, private_handle = c_ulong(), c_ulong()
        with _attributes(public) as public_attributes, _attributes(private) as private_attributes:
            self._call(
                "C_GenerateKeyPair",
                self._handle,
                byref(_Mechanism(mechanism)),
                *public_attributes,
                *private_attributes,
                byref(public_handle),
                byref(private_handle),
            )
        return public_handle.value, private_handle.value

    def sign(self, handle: int, mechanism: Mechanism, data: bytes) -> bytes:
        """Sign data with a private key."""
        self._call("C_SignInit", self._handle, byref(_Mechanism(mechanism)), handle)
        length = c_ulong(_MAX_VALUE)
        self._call("C_Sign", self._handle, data, len(data), self._signature, byref(length))
        return self._signature.raw[: min(length.value, _MAX_VALUE)]

    def destroy(self, handle: int) -> None:
        """Delete an object from the token."""
        self._call("C_DestroyObject", self._handle, handle)


@contextmanager
def suppress_values(*values: CKR) -> Iterator[None]:
    """Ignore errors with these return values."""
    try:
        yield
    except CryptokiError as error:
        if error.value not in values:
            raise


@contextmanager
def _attributes(template: Template) -> Iterator[tuple[Any, int]]:
    """Encode a template. Yields the array of attributes and its length. The values exist during the `with` block."""
    values = [_encoded(value) for value in template.values()]
    buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
    array = (_Attribute * len(values))(
        *(
            _Attribute(attribute, ctypes.addressof(buffer), len(buffer))
            for attribute, buffer in zip(template, buffers, strict=True)
        )
    )
    yield array, len(values)


def _encoded(value: bool | int | bytes) -> bytes:
    """Encode a value as CK_BBOOL, CK_ULONG or bytes."""
    if isinstance(value, bytes):
        return value
    return bytes((value,)) if isinstance(value, bool) else bytes(c_ulong(value))


def _padded_text(field: bytes) -> str:
    """Decode a field that is padded with spaces. Some modules end the text with a zero byte, against the standard."""
    return field.decode(errors="replace").rstrip()
