"""The error message of a distributed training one of whose processes has died."""

import re

# gloo: a broken connection, or nothing within the timeout; NCCL: its watchdog; the store that the processes met at
BROKEN = re.compile(
    r"(gloo|c10d|TCPStore|NCCL|ProcessGroup)[\s\S]*"
    r"(Connection (reset|closed|refused)|(Read|Write) error|Broken pipe|[Tt]imed out|[Tt]imeout|remote process exited)"
)


def death_of_a_process(error: BaseException) -> str | None:
    """The message for an error that means that another process of the training has gone; None for any other.

    The first exchange of gradients, weights or tokens that it is missed in raises, at once where its connection broke,
    and after the timeout of the process group where it only hangs.
    """
    if not isinstance(error, RuntimeError) or not BROKEN.search(f"{type(error).__name__} {error}"):
        return None
    return (
        "Another process of this training ended or no longer answers, so this one ends too. Look for its last message "
        "above; one that was killed says nothing, most often because memory ran out (the system's log tells). Nothing "
        "that was checkpointed is lost: resume with ckpt_path=last."
    )
