"""What the daemon was started with, resolved: which file, what it says, and what fits this machine.

Rule: start and reload gather their settings the same way; nothing is kept of a file that is refused.

Fails: ConfigError for the file, StartError for what the system denies.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echod.config import loading, plan, reading
from echod.config.models import Config
from echod.config.wording import printable
from echod.errors import ConfigError, StartError
from echod.net import poller
from echod.observe import log_file, sink
from echod.process import certificates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from echod.events import ConfigAdjusted
    from echod.process.certificates import Material


@dataclass(frozen=True)
class Settings:
    """One validated configuration and where it came from."""

    config: Config
    path: Path | None
    """The file; None for the built-in defaults."""
    given: Path | None
    """The file that the command line named."""
    foreground: bool
    poller: str
    """The poller's word, "auto" resolved."""
    adjustments: tuple[ConfigAdjusted, ...]
    inherited: frozenset[str]
    """The names of the sockets that were passed to this process."""
    certificates: Mapping[str, Material]
    """What listeners speak TLS with, by their names."""

    def again(self) -> Settings:
        """Read everything anew."""
        return gather(self.given, foreground=self.foreground, inherited=self.inherited)


def gather(given: Path | None, *, foreground: bool, inherited: frozenset[str] = frozenset()) -> Settings:
    """Read the file `given`, else the default one where it exists, else take the built-in defaults."""
    path = given or reading.default_file()
    config = loading.load(path) if path else Config()
    name = poller.resolve(config.daemon.poller)
    try:
        plan.claim(config, inherited)
        _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        config, adjustments = plan.fit(config, descriptors, poller.POLLERS[name].capacity)
        materials = certificates.read(config.listener)
    except ConfigError as error:
        raise ConfigError(*(loading.placed(path, line) if path else line for line in error.lines)) from None
    if not foreground and not config.log.file:
        raise ConfigError(
            f"{reading.prefix(path, None) if path else 'defaults: '}log.file: must name a file under --daemon, "
            "which has no other output"
        )
    return Settings(config, path, given, foreground, name, adjustments, inherited, materials)


def open_log(settings: Settings) -> int:
    """Return a descriptor for the log that `settings` asks for."""
    path = settings.config.log.file
    try:
        return log_file.open_file(path) if path else sink.open_standard_output()
    except OSError as error:
        where = f"log.file: {printable(path, len(path))}" if path else "standard output"
        raise StartError(f"{where}: {error.strerror}", errno=error.errno) from None


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one, which is all that an unprivileged process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
