"""The credentials of connections: asked for each new one, so that they may change or expire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from pathlib import Path
from typing import Final, Self, TypeAlias

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from broker.errors import ConfigError
from broker.runtime.threads import call_on_thread

Given: TypeAlias = str | tuple[str] | tuple[str, str]
Source: TypeAlias = Callable[[], Given | Awaitable[Given]]
Credentials: TypeAlias = Source | CredentialProvider

TIMEOUT_S: Final = 10.0
_PLAIN_ASYNC: Final = CredentialProvider.get_credentials_async


class CredentialsError(AuthenticationError):
    """There are no credentials to log in with: the source failed."""


class Login(CredentialProvider):
    """Asks a source for the password of each new connection.

    Args:
        user: of the URL; "" is the default user.
        source: returns the password, (password) or (user, password).
        may_block: whether it is called on a thread, unless it is a coroutine function.
    """

    def __init__(self, user: str, source: Source, *, may_block: bool = True) -> None:
        self._user = user
        self._source = source
        self._may_block = may_block and not iscoroutinefunction(source)

    @classmethod
    def of_file(cls, user: str, path: str) -> Self:
        """Return the login whose password is the first line of a file."""
        return cls(user, partial(first_line, path), may_block=False)

    @classmethod
    def of(cls, user: str, credentials: Credentials) -> Self:
        """Return the login with the password of a function, or of a provider of redis-py."""
        if not isinstance(credentials, CredentialProvider):
            return cls(user, credentials)
        # Without one of its own, redis-py's would call the plain method on the loop, and warn.
        has_async = type(credentials).get_credentials_async is not _PLAIN_ASYNC
        return cls(
            user, credentials.get_credentials_async if has_async else credentials.get_credentials
        )

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return (password) or (user, password).

        Raises:
            CredentialsError: the source failed, or returned something else.
        """
        given = await self._asked()
        if isinstance(given, tuple) and len(given) == 1:
            (given,) = given
        if isinstance(given, str):
            return (self._user, given) if self._user else (given,)
        if isinstance(given, tuple) and [type(part) for part in given] == [str, str]:
            return given
        # Not shown: it may be a secret of another type.
        raise CredentialsError(
            f"credentials returned a {type(given).__name__}; return the password as str, or (user, "
            "password)"
        )

    async def _asked(self) -> Given:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                given = (
                    await call_on_thread(self._source, "credentials")
                    if self._may_block
                    else self._source()
                )
                return await given if isawaitable(given) else given
        except ConfigError as error:
            raise CredentialsError(str(error)) from None
        except TimeoutError:
            raise CredentialsError(f"credentials did not return within {TIMEOUT_S:g} s") from None
        except Exception as error:
            # Without its text, which may hold a secret.
            raise CredentialsError(f"credentials raised {type(error).__name__}") from error


def first_line(path: str) -> str:
    """Return the first line of a password file.

    Raises:
        ConfigError: it cannot be read, or the line is empty.
    """
    try:
        line, *_ = [*Path(path).read_text("utf-8").splitlines(), ""]
    except (OSError, ValueError) as error:
        # A decoding error would show a part of the password.
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"cannot read the password file {path}: {why}"]) from None
    if not line:
        raise ConfigError([f"the password file {path} has no password in its first line"])
    return line
