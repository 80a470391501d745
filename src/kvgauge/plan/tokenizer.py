"""The tokenizer.json a test names. Pure: its bytes are asked of `read_file`."""

import hashlib
from collections.abc import Callable

from kvgauge.failures import UsageError
from kvgauge.plan.records import TokenizerFile

FILE_NAME = "tokenizer.json"


def read_tokenizer(path: str, read_file: Callable[[str], bytes]) -> TokenizerFile:
    """What `path` names: a tokenizer.json, or the folder that holds one. It is read through, so that it can be used.

    read_file  gives a file's bytes; raises OSError
    raises     UsageError
    """
    from kvgauge.tokens.choose import given

    whole = path
    try:
        try:
            data = read_file(whole)
        except IsADirectoryError:
            whole = f"{path.rstrip('/')}/{FILE_NAME}"
            data = read_file(whole)
    except OSError as error:
        raise UsageError(
            f"cannot read {whole}: {error.strerror}. It must be a {FILE_NAME} on this machine, or a folder with one: "
            "the names of models are not looked up, since kvgauge downloads nothing. Copy the file that lies beside "
            "the model's weights, or leave the tokenizer away"
        ) from None
    given(data, whole)
    return TokenizerFile(path=whole, sha256=hashlib.sha256(data).hexdigest())
