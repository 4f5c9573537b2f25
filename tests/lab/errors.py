"""What goes wrong in the lab, beside what its tests are about."""

HINT = "run as root: scripts/setup-debian.sh lab"


class LabError(Exception):
    """The lab cannot be set up, or a guest did not do what it had to in its time; the text has the guest's output."""
