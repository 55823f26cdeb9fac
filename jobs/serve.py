"""`lorae serve STORAGE`: a stored ensemble as an HTTP endpoint on this machine.

    GET  /health     {"trial": ..., "members": 3, "classes": [...], "temperature": 1.2}
    POST /predict    {"inputs": ["a text", {"text": ..., "options": [...]}], "coverage": 0.9}
                     {"predictions": [{"label": ..., "probability": ..., "member_probabilities": [...], ...}]}

Requests are computed one at a time. A request that is too large is refused before it is read completely.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from lorae.engine.ensembles import Ensemble

MAX_BODY_BYTES = 2**20
MAX_INPUTS = 256
MAX_CONNECTIONS = 64
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(ValueError):
    """A refused request.

    Args:
        status: of the HTTP response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(ensemble: Ensemble) -> Starlette:
    """The endpoint of an ensemble."""

    async def predict(request: Request) -> JSONResponse:
        try:
            inputs, coverage = _asked(await _body(request))
            found = await run_in_threadpool(ensemble.predict, inputs, coverage=coverage)
        except ValueError as error:
            status = error.status if isinstance(error, Refused) else 422
            return JSONResponse({"error": str(error)}, status)
        columns = found.columns()
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return JSONResponse(
            {"predictions": _plain(rows), "temperature": found.temperature, "notes": found.notes}
        )

    async def health(request: Request) -> JSONResponse:
        return JSONResponse(about(ensemble))

    return Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)])


def about(ensemble: Ensemble) -> dict[str, Any]:
    """What the endpoint says about itself."""
    row = ensemble.row
    return {
        "trial": row["trial_id"],
        "task": row["task"],
        "backbone": row["backbone"],
        "members": row["members"],
        "member_ids": row["member_ids"],
        "classes": ensemble.classes,
        "temperature": ensemble.temperature,
    }


async def _body(request: Request) -> bytes:
    """A request's body; reading stops as soon as it is too long."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes; send fewer inputs at once")
    return content


def _asked(body: bytes) -> tuple[list[Any], float]:
    """Inputs and coverage of a request.

    Raises:
        Refused: not JSON of that form, or too many inputs. File paths are not inputs: a server reads no
            files.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON ({error})") from error
    inputs = said.get("inputs") if isinstance(said, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(value, (str, dict)) for value in inputs):
        raise Refused(422, 'send {"inputs": [...]} with texts, or objects with text and options')
    if len(inputs) > MAX_INPUTS:
        raise Refused(413, f"{len(inputs)} inputs, at most {MAX_INPUTS} are answered at once")
    coverage = said.get("coverage", 0.9)
    if not isinstance(coverage, (int, float)) or isinstance(coverage, bool):
        raise Refused(422, f"coverage={coverage!r}: must be a number in (0, 1)")
    return inputs, float(coverage)


def _plain(value: Any) -> Any:
    """The value as JSON allows it: NaN becomes null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def run_server(ensemble: Ensemble, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        ValueError: the ensemble reads files, which a server does not.
    """
    import uvicorn

    if ensemble.reads != "text":
        raise ValueError(f"the ensemble reads {ensemble.reads}s; only texts are served")
    ensemble.predict({"text": "warm up", "options": ensemble.classes or ("no", "yes")})
    if host not in LOOPBACK:
        print(f"lorae: {host} can be reached by others, who are asked for nothing; 127.0.0.1 cannot")
    print(f"lorae: {ensemble}\nPOST http://{host}:{port}/predict; Ctrl-C ends it", flush=True)
    uvicorn.run(
        application(ensemble),
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
    )
