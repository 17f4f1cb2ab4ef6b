"""The one exception that is meant for users."""


class UserError(ValueError):
    """Something the user gave is wrong: the message is one line naming the file or config key.

    ``train_net.py`` and the tools print it as ``error: ...`` and exit with status 2.
    """
