"""All claims by name."""

from __future__ import annotations

from stvl.claims import losses, motion
from stvl.claims.spec import Claim
from stvl.core.errors import ConfigError, nearest

CLAIMS: dict[str, Claim] = {claim.name: claim for claim in (losses.CLAIM, motion.CLAIM)}


def claim(name: str) -> Claim:
    """The claim called `name`.

    Raises:
        ConfigError: an unknown name, with the nearest.
    """
    if name not in CLAIMS:
        raise ConfigError(f"there is no claim {name!r}{nearest(name, CLAIMS)}")
    return CLAIMS[name]
