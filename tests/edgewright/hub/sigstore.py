"""A sigstore on this machine, under the real client: GitHub's identities, a certificate authority (Fulcio), the log of
its certificates (RFC 6962) and that of signatures (Rekor, version 1).

Each checks what it is given as the real one does, and signs what it gives with a key of its own. What is simpler: every
entry of the log is a tree by itself, and there are no timestamps besides the log's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .identity import JOB

ISSUER = "https://token.actions.githubusercontent.com"
WORKFLOW = "acme/small/.github/workflows/packages.yml@refs/heads/main"
IDENTITY = f"https://github.com/{WORKFLOW}"
_SECRET = "MustStaySecret" * 4  # GitHub's, with which it signs identities
_ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_SCT_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_VALID = {"start": "2020-01-01T00:00:00Z"}


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class Key:
    """Of one of the services."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.der = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.der).digest()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, ec.ECDSA(SHA256()))

    def published(self) -> dict[str, Any]:
        key = {"rawBytes": _b64(self.der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": _VALID}
        return {"hashAlgorithm": "SHA2_256", "publicKey": key, "logId": {"keyId": _b64(self.id)}}


class Sigstore:
    """entries: what the log holds, as Rekor keeps it."""

    def __init__(self) -> None:
        self.authority, self.certificates, self.log = Key(), Key(), Key()
        self.entries: list[dict[str, Any]] = []
        self.root = self._root()

        class Handler(_Handler):
            sigstore = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # what a runner sets for a job with `id-token: write`
        self.job = {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB,
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/identity?api-version=2.0",
        }

    def __enter__(self) -> Sigstore:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def trust(self) -> str:
        """The client trust configuration, as `--sigstore FILE` takes it."""
        service = {"url": self.url, "majorApiVersion": 1, "validFor": _VALID, "operator": "here"}
        chain = {"certificates": [{"rawBytes": _b64(self.root.public_bytes(Encoding.DER))}]}
        subject = {"organization": "here", "commonName": "here"}
        trusted = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [{"baseUrl": self.url} | self.log.published()],
            "ctlogs": [{"baseUrl": self.url} | self.certificates.published()],
            "certificateAuthorities": [
                {"subject": subject, "uri": self.url, "certChain": chain, "validFor": _VALID},
            ],
            "timestampAuthorities": [],
        }
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }
        media = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return json.dumps({"mediaType": media, "trustedRoot": trusted, "signingConfig": signing})

    def _root(self) -> x509.Certificate:
        name, now = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "here")]), datetime.now(UTC)
        public = self.authority.private.public_key()
        builder = x509.CertificateBuilder(name, name, public, x509.random_serial_number(), now, now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        return builder.sign(self.authority.private, SHA256())

    def identity(self, audience: str) -> str:
        """Who the job is, signed; for minutes, as GitHub's."""
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "repo:acme/small:ref:refs/heads/main", "job_workflow_ref": WORKFLOW}
        return jwt.encode(claims | {"aud": audience, "iat": now, "nbf": now, "exp": now + 300}, _SECRET, "HS256")

    def certify(self, asked: dict[str, Any], token: str) -> dict[str, Any]:
        """A certificate for the key that signed the request, in the name of who the token says asks."""
        claims = jwt.decode(token, _SECRET, ["HS256"], audience="sigstore", issuer=ISSUER)
        request = x509.load_pem_x509_csr(base64.b64decode(asked["certificateSigningRequest"]))
        assert request.is_signature_valid
        now = datetime.now(UTC).replace(microsecond=0)
        builder = x509.CertificateBuilder(
            issuer_name=self.root.subject,
            subject_name=x509.Name([]),
            public_key=request.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now,
            not_valid_after=now + timedelta(minutes=10),
        )
        who = x509.UniformResourceIdentifier(f"https://github.com/{claims['job_workflow_ref']}")
        for extension, critical in (
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.private.public_key()), False),
            (x509.SubjectAlternativeName([who]), True),
            (x509.UnrecognizedExtension(_ISSUER_OID, claims["iss"].encode()), False),
        ):
            builder = builder.add_extension(extension, critical)
        before = builder.sign(self.authority.private, SHA256()).tbs_certificate_bytes
        builder = builder.add_extension(x509.UnrecognizedExtension(_SCT_OID, self._noted(before)), False)
        chain = (builder.sign(self.authority.private, SHA256()), self.root)
        return {
            "signedCertificateEmbeddedSct": {
                "chain": {"certificates": [each.public_bytes(Encoding.PEM).decode() for each in chain]}
            }
        }

    def _noted(self, before: bytes) -> bytes:
        """The certificate log's promise for what will be signed: RFC 6962, sections 3.2 and 3.3."""
        moment = int(time.time() * 1000)
        entry = self.authority.id + len(before).to_bytes(3, "big") + before
        signature = self.certificates.sign(struct.pack("!BBQH", 0, 0, moment, 1) + entry + b"\0\0")
        promise = struct.pack("!B32sQHBBH", 0, self.certificates.id, moment, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(promise) + 2, len(promise)) + promise
        return b"\x04" + bytes([len(listed)]) + listed  # DER: octets, fewer than 128

    def note(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """An entry of the log, for an envelope whose signature is that of the certificate's key."""
        assert (proposed["kind"], proposed["apiVersion"]) == ("dsse", "0.0.1")
        content = proposed["spec"]["proposedContent"]
        envelope, (verifier,) = json.loads(content["envelope"]), content["verifiers"]
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        (signed,) = envelope["signatures"]
        public = x509.load_pem_x509_certificate(base64.b64decode(verifier)).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        encoded = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        public.verify(base64.b64decode(signed["sig"]), encoded, ec.ECDSA(SHA256()))
        hashed = {"envelopeHash": content["envelope"].encode(), "payloadHash": payload}
        spec: dict[str, Any] = {
            name: {"algorithm": "sha256", "value": hashlib.sha256(raw).hexdigest()} for name, raw in hashed.items()
        }
        spec["signatures"] = [{"signature": signed["sig"], "verifier": verifier}]
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}, separators=(",", ":")).encode()
        entry = {
            "body": _b64(body),
            "integratedTime": int(time.time()),
            "logID": self.log.id.hex(),
            "logIndex": len(self.entries),
        }
        promise = self.log.sign(json.dumps(entry, separators=(",", ":"), sort_keys=True).encode())
        root = hashlib.sha256(b"\0" + body).digest()
        head = f"here\n1\n{_b64(root)}\n"
        proof = {
            "logIndex": 0,
            "treeSize": 1,
            "hashes": [],
            "rootHash": root.hex(),
            "checkpoint": f"{head}\n— here {_b64(self.log.id[:4] + self.log.sign(head.encode()))}\n",
        }
        self.entries.append(spec)
        return {root.hex(): entry | {"verification": {"inclusionProof": proof, "signedEntryTimestamp": _b64(promise)}}}


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    every = dict.fromkeys([*names.split(), "crl_sign", "encipher_only", "decipher_only"], False)
    return x509.KeyUsage(**every | allowed)


class _Handler(BaseHTTPRequestHandler):
    sigstore: Sigstore

    def do_GET(self) -> None:
        found = urlsplit(self.path)
        if found.path == "/.well-known/openid-configuration":
            self._say(dict.fromkeys(("authorization_endpoint", "token_endpoint"), self.sigstore.url))
        elif self.headers["Authorization"] == f"bearer {JOB}":
            self._say({"value": self.sigstore.identity(parse_qs(found.query)["audience"][0])})
        else:
            self.send_error(403)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v2/signingCert":
            try:
                self._say(self.sigstore.certify(asked, self.headers["Authorization"].removeprefix("Bearer ")), 201)
            except jwt.InvalidTokenError:
                self.send_error(401)
        else:
            assert self.path == "/api/v1/log/entries"
            self._say(self.sigstore.note(asked), 201)

    def _say(self, content: object, status: int = 200) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass
