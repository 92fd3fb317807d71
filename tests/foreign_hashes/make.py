"""Makes password hashes with the libraries of the systems that they come from.

Prints JSON: a list of hashes, each with its password and either `text`, which gatepass reads as it is, or the pieces of
a `firebase`, a `keycloak` or a `bare` hash. tests/foreign_hashes.rs runs this. tests/foreign_hashes/vectors.json holds
what it printed once, and some hashes that Python cannot make.
"""

import base64
import hashlib
import hmac
import json
import secrets

import argon2
import bcrypt
import django.conf
import firebase_scrypt
from django.contrib.auth import hashers
from passlib import hash as passlib

django.conf.settings.configure(
    PASSWORD_HASHERS=[
        f"django.contrib.auth.hashers.{name}PasswordHasher"
        for name in ["PBKDF2", "PBKDF2SHA1", "Argon2", "BCryptSHA256", "Scrypt", "MD5"]
    ]
)


# Below the defaults, to keep the test short.
hashers.get_hasher("pbkdf2_sha1").iterations = 20_000
hashers.get_hasher("pbkdf2_sha256").iterations = 100_000
hashers.get_hasher("argon2").memory_cost = 4096
hashers.get_hasher("bcrypt_sha256").rounds = 8
hashers.get_hasher("scrypt").parallelism = 2


def b64(content):
    return base64.b64encode(content).decode()


def password():
    """A password on which no two systems agree by chance: short or long, or with letters that normalisation changes."""
    return secrets.choice(
        [
            secrets.token_urlsafe(9),
            "\ufb01ne cafe\u0301s " + secrets.token_hex(4),
            "пароль 密碼 🦀 " + secrets.token_hex(4),
            secrets.token_urlsafe(75),
        ]
    )


def bcrypt_text(rounds, prefix):
    def make(word):
        # All readers of such hashes cut the password off here; this library leaves that to its caller.
        return bcrypt.hashpw(word.encode()[:72], bcrypt.gensalt(rounds, prefix=prefix)).decode()

    return make


def argon2_text(kind, **cost):
    return lambda word: argon2.PasswordHasher(type=kind, **cost).hash(word)


def django_text(hasher):
    return lambda word: hashers.make_password(word, hasher=hasher)


TEXTS = {
    "bcrypt 2b": bcrypt_text(8, b"2b"),
    "bcrypt 2a": bcrypt_text(9, b"2a"),
    "bcrypt 2y": lambda word: bcrypt_text(8, b"2b")(word).replace("$2b$", "$2y$"),  # PHP's name for the same
    "bcrypt of low cost": bcrypt_text(5, b"2b"),
    "argon2id": argon2_text(argon2.Type.ID, time_cost=3, memory_cost=4096, parallelism=2),
    "argon2i": argon2_text(argon2.Type.I, time_cost=3, memory_cost=64, parallelism=1),
    "argon2d": argon2_text(argon2.Type.D, time_cost=1, memory_cost=64, parallelism=1),
    "scrypt": passlib.scrypt.using(rounds=14).hash,
    "scrypt of low cost": passlib.scrypt.using(rounds=6, block_size=4).hash,
    "scrypt $7$": passlib.scrypt.using(rounds=12, ident="$7$").hash,
    "pbkdf2-sha1": passlib.pbkdf2_sha1.using(rounds=20_000).hash,
    "pbkdf2-sha256": passlib.pbkdf2_sha256.using(rounds=10_000).hash,
    "pbkdf2-sha512": passlib.pbkdf2_sha512.using(rounds=25_000).hash,
    "pbkdf2 of low cost": passlib.pbkdf2_sha256.using(rounds=1000).hash,
    "md5-crypt": passlib.md5_crypt.hash,
    "apr1": passlib.apr_md5_crypt.hash,
    "sha256-crypt": passlib.sha256_crypt.using(rounds=5000).hash,
    "sha512-crypt": passlib.sha512_crypt.using(rounds=6000).hash,
    "sha512-crypt of low cost": passlib.sha512_crypt.using(rounds=1000).hash,
    "phpass": passlib.phpass.using(rounds=8).hash,
    "phpBB": passlib.phpass.using(rounds=11, ident="H").hash,
    "django pbkdf2_sha256": django_text("pbkdf2_sha256"),
    "django pbkdf2_sha1": django_text("pbkdf2_sha1"),
    "django argon2": django_text("argon2"),
    "django bcrypt_sha256": django_text("bcrypt_sha256"),
    "django scrypt": django_text("scrypt"),
    "django md5": django_text("md5"),
    "django sha1": passlib.django_salted_sha1.hash,
    "{MD5}": passlib.ldap_md5.hash,
    "{SMD5}": passlib.ldap_salted_md5.hash,
    "{SHA}": passlib.ldap_sha1.hash,
    "{SSHA}": passlib.ldap_salted_sha1.hash,
    "{SSHA256}": passlib.ldap_salted_sha256.hash,
    "{SSHA512}": passlib.ldap_salted_sha512.hash,
    "{CRYPT}$6$": passlib.ldap_sha512_crypt.using(rounds=5000).hash,
}


def firebase(word):
    key, salt, separator = secrets.token_bytes(64), secrets.token_bytes(16), b"\x04"
    derived = firebase_scrypt.generate_derived_key(word, salt, separator, 8, 14)
    return {
        "signer_key": b64(key),
        "salt_separator": b64(separator),
        "rounds": 8,
        "mem_cost": 14,
        "hash": b64(firebase_scrypt.encrypt(key, derived)),
        "salt": b64(salt),
    }


def keycloak_pbkdf2(algorithm, digest, iterations):
    # https://github.com/keycloak/keycloak, Pbkdf2PasswordHashProvider: 16 bytes of salt, 512 bits of key.
    def make(word):
        salt = secrets.token_bytes(16)
        value = hashlib.pbkdf2_hmac(digest, word.encode(), salt, iterations, 64)
        data = {"hashIterations": iterations, "algorithm": algorithm, "additionalParameters": {}}
        secret = {"value": b64(value), "salt": b64(salt), "additionalParameters": {}}
        return {"credential_data": json.dumps(data), "secret_data": json.dumps(secret)}

    return make


def keycloak_argon2(word):
    salt = secrets.token_bytes(16)
    value = argon2.low_level.hash_secret_raw(word.encode(), salt, 5, 7168, 1, 32, argon2.Type.ID)
    parameters = {"hashLength": ["32"], "memory": ["7168"], "type": ["id"], "version": ["1.3"], "parallelism": ["1"]}
    data = {"hashIterations": 5, "algorithm": "argon2", "additionalParameters": parameters}
    secret = {"value": b64(value), "salt": b64(salt), "additionalParameters": {}}
    return {"credential_data": json.dumps(data), "secret_data": json.dumps(secret)}


def bare(algorithm, template="{password}"):
    def make(word):
        salt = "sälz" + secrets.token_hex(4) if "{salt}" in template else ""
        text = template.replace("{salt}", salt).replace("{password}", word)
        made = {"algorithm": algorithm, "hash": hashlib.new(algorithm, text.encode()).hexdigest()}
        return {**made, "template": template, "salt": salt} if salt else made

    return make


def bare_hmac(algorithm):
    def make(word):
        key = secrets.token_hex(20)
        return {"algorithm": algorithm, "key": key, "hash": hmac.new(key.encode(), word.encode(), algorithm).hexdigest()}

    return make


PIECES = {
    "Firebase": ("firebase", firebase),
    "Keycloak pbkdf2": ("keycloak", keycloak_pbkdf2("pbkdf2", "sha1", 20_000)),
    "Keycloak pbkdf2-sha256": ("keycloak", keycloak_pbkdf2("pbkdf2-sha256", "sha256", 27_500)),
    "Keycloak pbkdf2-sha512": ("keycloak", keycloak_pbkdf2("pbkdf2-sha512", "sha512", 30_000)),
    "Keycloak argon2": ("keycloak", keycloak_argon2),
    "md5": ("bare", bare("md5")),
    "sha1": ("bare", bare("sha1", "{salt}{password}")),
    "sha256": ("bare", bare("sha256", "{password}:{salt}")),
    "sha384": ("bare", bare("sha384", "pepper-{salt}-{password}-{salt}")),
    "sha512": ("bare", bare("sha512", "{salt}{password}")),
    "hmac-md5": ("bare", bare_hmac("md5")),
    "hmac-sha1": ("bare", bare_hmac("sha1")),
    "hmac-sha256": ("bare", bare_hmac("sha256")),
    "hmac-sha512": ("bare", bare_hmac("sha512")),
}


def main():
    made = []
    for what, make in TEXTS.items():
        word = password()
        made.append({"what": what, "password": word, "text": make(word)})
    for what, (kind, make) in PIECES.items():
        word = password()
        made.append({"what": what, "password": word, kind: make(word)})
    print(json.dumps(made, indent=1))


main()
