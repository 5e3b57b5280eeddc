"""Who asks the Hub on this machine: access tokens, and GitHub's identities that are exchanged for one (RFC 8693)."""

from __future__ import annotations

import json
from typing import Any

WRITER, READER = "hf_writerMustStaySecret", "hf_readerMustStaySecret"
JOB, IDENTITY = "jobMustStaySecret", "identityMustStaySecret"  # what a runner asks GitHub with, and what it gets
EXCHANGED = "hf_jwt_MustStaySecret:"  # then the only repository that it is for


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class Identity:
    """Of a handler. hub.publishers: repositories that trust the workflow; hub.sigstore: who signs its name."""

    hub: Any
    headers: Any
    query: dict[str, list[str]]

    def _body(self) -> bytes:
        raise NotImplementedError

    def _token(self) -> str:
        scheme, _, token = str(self.headers.get("Authorization", "")).partition(" ")
        return token if scheme.lower() == "bearer" else ""

    def _known(self) -> None:
        if self._token() not in (WRITER, READER) and not self._token().startswith(EXCHANGED):
            raise Refused(401, "Invalid credentials in Authorization header")

    def _writes(self, name: str) -> bool:
        return self._token() in (WRITER, EXCHANGED + name)

    def _id_token(self) -> Any:
        """GitHub's, for a job with `id-token: write`."""
        if self._token() != JOB:
            raise Refused(403, "this job may ask for no identity")
        if self.query["audience"] == ["sigstore"]:
            return {"value": self.hub.sigstore.identity("sigstore")}
        return {"value": f"{IDENTITY} for {self.query['audience'][0]}"}

    def _exchange(self) -> Any:
        asked = json.loads(self._body())
        if asked["grant_type"] != "urn:ietf:params:oauth:grant-type:token-exchange":
            raise Refused(400, "unsupported_grant_type")
        if asked["subject_token"] != f"{IDENTITY} for {self.hub.url}" or asked["resource"] not in self.hub.publishers:
            raise Refused(400, "invalid_grant: no trusted publisher matches")
        return {"access_token": EXCHANGED + asked["resource"], "token_type": "bearer", "expires_in": 3600}
