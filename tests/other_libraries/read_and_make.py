"""Reads gatepass's tokens, and makes tokens like them, with libraries that are not part of gatepass.

tests/other_libraries.rs runs this once, with everything as one JSON object on stdin, and checks the JSON on stdout.
"""

import base64
import json
import sys
from datetime import datetime, timezone

import jwt
import pyseto
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwk

REGISTERED = ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"]
TIMES = ["iat", "nbf", "exp"]


class Jwks(jwt.PyJWKClient):
    """The client that services use, given a document instead of an address."""

    def __init__(self, document):
        super().__init__("https://id.example/jwks", cache_keys=True)
        self.document = json.loads(document)

    def fetch_data(self):
        return self.document


class Reader:
    def __init__(self, case):
        self.audience, self.issuer = case["audience"], case["issuer"]
        self.public = Jwks(case["jwks"])
        self.shared = Jwks(json.dumps({"keys": [json.loads(case["hs256"])]}))
        paserks = [entry["paserk"] for entry in json.loads(case["paserks"])["keys"]]
        self.paserks = [pyseto.Key.from_paserk(paserk) for paserk in [*paserks, case["local"]]]

    def read(self, name, token):
        return self.read_jwt(name, token) if name.startswith("jwt:") else self.read_paseto(token)

    def read_jwt(self, name, token):
        keys = self.shared if name == "jwt:HS256" else self.public
        key = keys.get_signing_key_from_jwt(token)
        read = jwt.decode_complete(
            token,
            key,
            algorithms=[name.removeprefix("jwt:")],
            audience=self.audience,
            issuer=self.issuer,
            options={"require": REGISTERED},
        )
        return {"header": read["header"], "claims": read["payload"]}

    def read_paseto(self, token):
        read = pyseto.decode(self.paserks, token, deserializer=json, aud=self.audience)
        return {"header": read.footer, "claims": read.payload}

    def altered(self, name, token):
        """Where a byte can be changed without being noticed.

        This changes bytes and not characters, as both libraries accept more than one spelling of the same base64.
        """
        unnoticed = []
        parts = token.split(".")
        for i, part in enumerate(parts):
            if not name.startswith("jwt:") and i < 2:
                continue  # `v4` and `local`, which are not base64
            content = decode(part)
            for at in range(len(content)):
                changed = bytearray(content)
                changed[at] ^= 1
                other = ".".join([*parts[:i], encode(bytes(changed)), *parts[i + 1 :]])
                try:
                    self.read(name, other)
                    unnoticed.append([i, at])
                except Exception:
                    pass
        return unnoticed

    def names(self):
        """What the libraries call our keys."""
        jwts = [*self.public.document["keys"], *self.shared.document["keys"]]
        names = {f"jwt:{key['alg']}": jwk.import_key(key).thumbprint() for key in jwts}
        for key in self.paserks:
            names[f"v4.{key.purpose}"] = key.to_paserk_id()
        return names


def make(case):
    """A token for each format, with a key made here and its public half, or with gatepass's shared secret."""
    claims = dict(case["claims"])
    for name in TIMES:
        claims[name] = datetime.fromtimestamp(claims[name], timezone.utc)
    rsa_key = rsa.generate_private_key(65537, 2048)
    jwts = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa_key,
        "PS256": rsa_key,
    }
    made = {f"jwt:{alg}": make_jwt(alg, key, claims) for alg, key in jwts.items()}
    shared = jwt.PyJWK.from_json(case["hs256"])
    made["jwt:HS256"] = {"token": encode_jwt("HS256", shared.key, shared.key_id, claims)}

    # Times as Python writes them, with +00:00 where gatepass writes Z.
    claims |= {name: claims[name].isoformat() for name in TIMES}
    local = pyseto.Key.from_paserk(case["local"])
    made["v4.local"] = {"token": encode_paseto(local, local.to_paserk_id(), claims)}
    seed = ed25519.Ed25519PrivateKey.generate()
    secret = pyseto.Key.from_asymmetric_key_params(4, d=seed.private_bytes_raw())
    public = pyseto.Key.from_asymmetric_key_params(4, x=seed.public_key().public_bytes_raw())
    token = encode_paseto(secret, public.to_paserk_id(), claims)
    made["v4.public"] = {"token": token, "public": public.to_paserk()}
    return made


def make_jwt(alg, key, claims):
    public = jwt.get_algorithm_by_name(alg).to_jwk(key.public_key(), as_dict=True)
    public |= {"alg": alg, "use": "sig", "kid": jwk.import_key(public).thumbprint()}
    return {"token": encode_jwt(alg, key, public["kid"], claims), "public": json.dumps(public)}


def encode_jwt(alg, key, kid, claims):
    return jwt.encode(claims, key, algorithm=alg, headers={"typ": "at+jwt", "kid": kid})


def encode_paseto(key, kid, claims):
    return pyseto.encode(key, claims, footer={"kid": kid}, serializer=json).decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def main():
    case = json.load(sys.stdin)
    reader = Reader(case)
    result = {
        "read": {name: reader.read(name, token) for name, token in case["tokens"].items()},
        "altered": {name: reader.altered(name, token) for name, token in case["tokens"].items()},
        "names": reader.names(),
        "made": make(case),
    }
    json.dump(result, sys.stdout)


main()
