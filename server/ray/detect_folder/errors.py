"""Why a job over a folder ends before its time.

JobError
├── JobRefused   it can't begin as it was asked for
└── JobStopped   it can't go on; what is done stays done
"""


class JobError(Exception):
    """A job that ends before it is done; the message is for the person who started it."""


class JobRefused(JobError):
    """The job can't begin as it was asked for; nothing was written."""


class JobStopped(JobError):
    """The job can't go on. The same command goes on from here once the cause is gone."""
