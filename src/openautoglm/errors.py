"""The one exception tree.

    OpenAutoGLMError
    ├── ConfigError              a setting, flag or settings file is wrong
    ├── CheckpointError          files of a checkpoint
    │   ├── CheckpointFormatError    malformed or hostile bytes
    │   ├── MissingTensorError       a tensor that the architecture needs is not there
    │   └── UnexpectedTensorError    a tensor is there that the architecture does not explain
    ├── ModelError               config.json and what it describes
    │   ├── UnknownModelTypeError
    │   ├── UnknownConfigKeyError
    │   └── UnsupportedModelError    describable, not runnable here: names the features
    ├── HubError                 resolving or downloading a model reference
    ├── TemplateError            the checkpoint's chat template
    ├── TokenizerError           tokenizer.json
    ├── DowngradeError           --strict: something would be done differently than asked; carries the notice's code
    ├── DoesNotFitError          no plan fits the budget: carries the nearest plans
    ├── OutOfMemoryError         an allocation failed at a named boundary
    ├── RequestError             one request is at fault (HTTP 4xx); names the parameter
    │   ├── InvalidRequestError
    │   ├── ContextOverflowError
    │   ├── ConstraintError          a schema, regular expression or grammar that cannot be followed
    │   │   └── ConstraintLimitError     it takes more than one may: time, memory, size
    │   └── PrivateDataError         the text holds what the server was told to keep out; carries its kind
    ├── OverloadedError          no room now: carries retry_after_seconds (HTTP 429)
    │   └── MemoryPressureError      memory is being taken away from the server (HTTP 503)
    ├── LoadTestError            a server under test does not answer as the API says
    ├── DeadlineError            a request cannot end, or has not ended, by its deadline (HTTP 504)
    └── EngineError              the engine failed or is gone (HTTP 5xx)
        ├── StepRefusedError         the executor refused a batch before computing anything of it
        └── WeightReadError          weights that stay on disk could not be read: the step's requests end

Every message says what was wrong, what was expected, and what to do.
"""

from __future__ import annotations


class OpenAutoGLMError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class ConfigError(OpenAutoGLMError):
    """A setting, a flag or a settings file is wrong."""

    exit_code = 2


class CheckpointError(OpenAutoGLMError):
    """Something is wrong with the files of a checkpoint."""


class CheckpointFormatError(CheckpointError):
    """Bytes of a checkpoint file break the format's rules."""


class MissingTensorError(CheckpointError):
    """A tensor that the architecture needs is not in the checkpoint."""


class UnexpectedTensorError(CheckpointError):
    """The checkpoint holds a tensor that the architecture does not explain."""


class ModelError(OpenAutoGLMError):
    """config.json, or what it describes, cannot be used."""


class UnknownModelTypeError(ModelError):
    """`model_type` names no known family."""


class UnknownConfigKeyError(ModelError):
    """config.json holds a key that could change numerics and is not understood."""


class UnsupportedModelError(ModelError):
    """The model can be described and planned, but not run by this executor."""

    def __init__(self, message: str, *, features: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.features = features


class HubError(OpenAutoGLMError):
    """A model reference could not be resolved or downloaded."""


class TemplateError(OpenAutoGLMError):
    """The checkpoint's chat template is missing, failed, or broke its limits."""


class TokenizerError(OpenAutoGLMError):
    """The checkpoint's tokenizer files cannot be used."""


class DowngradeError(OpenAutoGLMError):
    """With --strict: a fallback or downgrade would be taken at load; `code` is the notice's (see spec/notices.py)."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class DoesNotFitError(OpenAutoGLMError):
    """No plan fits the budget; the message lists the nearest plans that do, `suggestions` are their commands."""

    exit_code = 3

    def __init__(self, message: str, *, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.suggestions = suggestions


class OutOfMemoryError(OpenAutoGLMError):
    """An allocation failed at a named boundary (load a slice, grow the pool, run a step)."""


class RequestError(OpenAutoGLMError):
    """One request is at fault; no other request suffers."""

    http_status = 400
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    """A field of the request has a value that cannot be honoured."""


class ContextOverflowError(RequestError):
    """Prompt and requested output do not fit the context window."""

    code = "context_length_exceeded"


class ConstraintError(RequestError):
    """What an answer must look like is malformed, unknown here, or leaves no token that may come."""

    code = "invalid_constraint"


class ConstraintLimitError(ConstraintError):
    """What an answer must look like takes more time, memory or room to follow than it may."""

    code = "constraint_limit_exceeded"


class PrivateDataError(RequestError):
    """A text holds private data that this server was told not to pass on; `kind` says of what kind, never what."""

    code = "private_data"

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class OverloadedError(OpenAutoGLMError):
    """There is no room for the request now; trying again later may succeed."""

    http_status = 429

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class MemoryPressureError(OverloadedError):
    """Memory is so tight that nothing new is taken; it may be free again soon."""

    http_status = 503


class LoadTestError(OpenAutoGLMError):
    """A server that is to be measured is not there, refuses, or does not answer as OpenAI's API says."""


class DeadlineError(OpenAutoGLMError):
    """A request cannot end, or has not ended, by the deadline that its client set."""

    http_status = 504


class EngineError(OpenAutoGLMError):
    """The engine failed, is starting, or is gone."""

    http_status = 503


class StepRefusedError(EngineError):
    """The executor refused a batch before computing anything; it still runs, and other batches may pass."""


class WeightReadError(EngineError):
    """Weights that stay on disk could not be read, or are damaged: the step is lost, later ones may pass."""
