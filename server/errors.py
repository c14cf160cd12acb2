"""Everything that can go wrong in the server, by whose fault it is.

ServerError
├── BadInput                 the client sent something we cannot serve
│   ├── MalformedRequest     the multipart, JSON or base64 around the images is broken
│   ├── NoImage              the request holds no image
│   ├── TooLarge             bytes, images or pixels over a limit
│   ├── UnsupportedImage     not a format that is served
│   ├── UndecodableImage     a served format, but empty, cut off or corrupt
│   └── InvalidParameter     a threshold, class or option out of range
├── NotFound                 no model of that name or version
├── Unauthorized             keys are configured and no valid one came
├── Forbidden                what was asked for needs a key, and none is configured
├── Unavailable              the server cannot take the request now; later it may
│   ├── QueueFull
│   ├── UploadsFull
│   ├── NotReady
│   └── Draining
├── ReloadFailed             a reload went wrong; what was served before goes on
├── DeadlineExceeded         the request's time was over before its images were inferred
├── InferenceFailed          the server took the images and failed
├── SessionLost              no batch can succeed any more; ends the process
└── DeploymentError          stops start-up or a reload; for the person who runs the server
    ├── ArtifactInvalid
    ├── ProviderUnavailable
    └── SettingsInvalid

This module knows nothing of HTTP; `server.http.errors` maps each class to one status.
"""

from typing import ClassVar


class ServerError(Exception):
    """Base of all errors the server raises on purpose.

    Attributes:
        code: stable snake_case name of the fault, for programs; the message is for people.
    """

    code: str = "server_error"


class BadInput(ServerError):
    """The client sent something the server cannot serve."""

    code = "bad_input"


class MalformedRequest(BadInput):
    """The multipart, JSON or base64 that should carry the images cannot be read."""

    code = "malformed_request"


class NoImage(BadInput):
    """The request holds no image."""

    code = "no_image"


class TooLarge(BadInput):
    """Bytes, images or pixels are over a limit; the message names the value and the limit.

    Args:
        message: what is too large, with the value and the limit.
        code: one of `CODES`, which limit it was.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "too_large",
            "body_too_large",
            "too_many_images",
            "too_many_pixels",
            "too_many_request_pixels",
            "too_much_memory",
        }
    )
    code = "too_large"

    def __init__(self, message: str, *, code: str = "too_large") -> None:
        assert code in self.CODES, code
        super().__init__(message)
        self.code = code


class UnsupportedImage(BadInput):
    """The image, or the body that holds it, is of a format or coding that is not served."""

    code = "unsupported_image"


class UndecodableImage(BadInput):
    """The bytes begin like an image of a served format, but are cut off or corrupt; or empty."""

    code = "undecodable_image"


class InvalidParameter(BadInput):
    """A parameter is out of its range; the message names the value and the range."""

    code = "invalid_parameter"


class NotFound(ServerError):
    """There is no model of the name or version that was asked for; the message names both."""

    code = "not_found"


class Unauthorized(ServerError):
    """API keys are configured, and the request brought none or a wrong one."""

    code = "unauthorized"


class Forbidden(ServerError):
    """What was asked for is only for those with a key, and the server has no keys configured."""

    code = "keys_not_configured"


class Unavailable(ServerError):
    """The server cannot take the request now; the same request may work later."""

    code = "unavailable"


class QueueFull(Unavailable):
    """As many images wait as `max_queue_images` allows."""

    code = "queue_full"


class UploadsFull(Unavailable):
    """The bodies in memory have as many bytes as `max_inflight_body_bytes` allows."""

    code = "uploads_full"


class NotReady(Unavailable):
    """The model is not loaded and warmed up yet, hangs, or has failed for good."""

    code = "not_ready"


class Draining(Unavailable):
    """The server is shutting down and takes no new requests."""

    code = "draining"


class ReloadFailed(ServerError):
    """The files as they are now can't be served, or loading failed; the old model goes on."""

    code = "reload_failed"


class DeadlineExceeded(ServerError):
    """The request's deadline passed before its images were inferred."""

    code = "deadline_exceeded"


class InferenceFailed(ServerError):
    """The batch that held this image failed on the execution provider."""

    code = "inference_failed"


class SessionLost(ServerError):
    """The session fails on what it ran before; no request meets it, the process ends with it."""

    code = "session_lost"


class DeploymentError(ServerError):
    """The server cannot start as it was deployed; at a reload the cause of a `ReloadFailed`."""

    code = "deployment_error"


class ArtifactInvalid(DeploymentError):
    """The model file is missing, not one of our artifacts, damaged, or of another version."""

    code = "artifact_invalid"


class ProviderUnavailable(DeploymentError):
    """The session does not run on the device that was asked for."""

    code = "provider_unavailable"


class SettingsInvalid(DeploymentError):
    """A setting is unknown or out of its range."""

    code = "settings_invalid"
