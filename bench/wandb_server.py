"""The part of W&B's server that a run talks to, in memory: enough to accept a run, its files and its return.

The requests are those of wandb's own client; a row lies at the line that the client says it has. What is never asked
for by a run, such as reading it back by `wandb.Api`, is missing.
"""

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_ENTITY = {"id": "E", "name": "local"}


@dataclass
class StoredRun:
    """What was received of a run."""

    id: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Variables of each request that made or changed it: display name, group, tags, notes, config."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """By file name; a row of the history is a line of `wandb-history.jsonl`."""
    alerts: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    def take(self, name: str, offset: int, content: list[str]) -> None:
        lines = self.lines.setdefault(name, [])
        if offset > len(lines):
            raise ValueError(f"{name}: line {offset} was sent, of {len(lines)} there are")
        lines[offset : offset + len(content)] = content

    def bucket(self, project: str) -> dict[str, Any]:
        """A run as its resume status and its creation tell of it."""
        tail, summary = self.lines.get("wandb-history.jsonl", [])[-1:], self.lines.get("wandb-summary.json", ["{}"])
        return {
            "id": self.id,
            "name": self.id,
            "displayName": self.id,
            "description": None,
            "config": "{}",
            "sweepName": None,
            "summaryMetrics": summary[-1],
            "historyTail": json.dumps(tail),
            "eventsTail": json.dumps(self.lines.get("wandb-events.jsonl", [])[-1:]),
            "historyLineCount": len(self.lines.get("wandb-history.jsonl", [])),
            "eventsLineCount": len(self.lines.get("wandb-events.jsonl", [])),
            "logLineCount": len(self.lines.get("output.log", [])),
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
            "project": {"id": "P", "name": project, "entity": _ENTITY},
        }


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes without a word is no error; anything else is told of."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class WandbServer:
    """Listens on loopback inside a `with` block; what came is `runs` by id, and `artifacts` in the client's words."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.unknown: set[str] = set()
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with server.lock:
                    answer = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_GET = _answer

        self._http = _Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What one request gets."""
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            self._stream(self.runs[found[1]], json.loads(body))
            return {}
        if path != "/graphql":
            return {}  # the bytes of a file
        asked = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        assert operation is not None, asked["query"]
        return {"data": self._data(operation[1], asked.get("variables") or {})}

    def _stream(self, run: StoredRun, told: dict[str, Any]) -> None:
        for name, part in (told.get("files") or {}).items():
            run.take(name, part["offset"], part["content"])
        if told.get("complete"):
            run.exit_codes.append(told["exitcode"])

    def _data(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "Viewer":
                return {
                    "viewer": {"id": "V", "username": "local", "email": "", "flags": "{}", "teams": {"edges": []}}
                    | {"entity": "local"}
                }
            case "ArtifactType" | "FetchArtifactDigestAlgorithm":
                return {"project": None}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run, model = self.runs.get(given["name"]), {"id": "P", "name": given["project"], "entity": _ENTITY}
                return {"model": model | {"bucket": run and run.bucket(given["project"])}}
            case "UpsertBucket":
                inserted = given["name"] not in self.runs
                run = self.runs.setdefault(given["name"], StoredRun(given["name"]))
                run.asked.append(given)
                return {"upsertBucket": {"bucket": run.bucket(given["project"]), "inserted": inserted}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in given["files"]]
                return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
            case "NotifyScriptableRunAlert":
                self.runs[given["runName"]].alerts.append(given)
                return {"notifyScriptableRunAlert": {"success": True}}
            case "CreateArtifact":
                self.artifacts.append(given["input"])
                one = {"id": str(len(self.artifacts)), "state": "PENDING", "artifactSequence": {"id": "S"}}
                one |= {"digest": given["input"]["digest"], "versionIndex": 0}
                return {"createArtifact": {"artifact": one}}
            case "CreateArtifactFiles":
                names = [one["name"] for one in given["input"]["artifactFiles"]]
                file = {"uploadUrl": f"{self.url}/upload", "uploadHeaders": [], "uploadMultipartUrls": None}
                nodes = [{"node": {"storagePath": name, "artifact": {"id": "A"}} | file} for name in names]
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                file = {"id": "F", "uploadUrl": f"{self.url}/upload", "uploadHeaders": []}
                name = operation[0].lower() + operation[1:]
                return {name: {"artifactManifest": {"id": "M", "file": file}}}
        self.unknown.add(operation)
        return {}
