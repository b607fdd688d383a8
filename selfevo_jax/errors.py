"""The one exception for a user's mistake.

Raise `UserError` with one sentence that names the thing, the place and the remedy.
The command line prints it without a traceback and exits with status 2. Everything else
that is raised is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake the user can mend: bad file, bad key, bad value."""
