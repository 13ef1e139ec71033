"""Work in processes."""

import os

from vidlab.data.parallel import in_processes


def halve(number: int) -> str:
    if number in (3, 17):
        os._exit(1)  # as a decoder with a fault would
    return str(number / 2)


def test_a_job_that_ends_its_process_is_its_own_failure(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    done = list(in_processes(halve, range(30), "", at_once=8, few=1, failed=lambda job, reason: f"{job}: {reason}"))
    assert [job for job, _ in done] == list(range(30))
    died = "the process that read it died"
    assert [result for _, result in done] == [f"{n}: {died}" if n in (3, 17) else str(n / 2) for n in range(30)]
