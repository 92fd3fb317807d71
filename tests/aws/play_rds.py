"""What RDS does in front of Postgres: TLS, and an IAM token as the password.

Listens on a port of its own until standard input ends, and prints `PORT`. A line on standard input sets the time, in
seconds since 1970, by which tokens are checked from then on; before the first line, the machine's clock counts. For each
connection this prints when the token was made, or null if the token was not good. With a good token the connection is
relayed to the Postgres on the Unix socket. A token is good if it is to the letter what botocore makes of the same
credentials, host, port, user and time, and is not older than 15 minutes.

    play_rds.py token                     answers the questions on standard input: botocore's tokens
    play_rds.py serve SOCKET CERTIFICATE  writes the certificate for `localhost` there
"""

import datetime
import functools
import json
import select
import socket
import ssl
import struct
import sys
import threading
import time
from unittest import mock
from urllib.parse import parse_qs

import botocore.auth
import botocore.session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CREDENTIALS = {"access_key": "AKIDEXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
REGION = "eu-central-1"

lock = threading.Lock()


@functools.cache
def client(region, access_key, secret_key, session_token):
    session = botocore.session.Session()
    session.set_credentials(access_key, secret_key, session_token)
    return session.create_client("rds", region_name=region)


def token(at, host, port, user, region=REGION, access_key=None, secret_key=None, session_token=None):
    signer = client(region, access_key, secret_key, session_token)
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).replace(tzinfo=None)
    # This replaces the clock of the whole module, which other threads read meanwhile.
    with lock, mock.patch.object(botocore.auth, "get_current_datetime", lambda *_, **__: moment):
        return signer.generate_db_auth_token(host, port, user)


def certificate(path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's RDS")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    with open(path, "wb") as file:
        file.write(pem)
    with open(path + ".key", "wb") as file:
        file.write(pem)
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path + ".key")
    return context


class Front:
    def __init__(self, postgres, context):
        self.postgres, self.context = postgres, context
        self.now = time.time
        self.listener = socket.create_server(("localhost", 0))
        self.port = self.listener.getsockname()[1]

    def listen(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.connected, args=(connection,), daemon=True).start()

    def connected(self, connection):
        try:
            self.talk(connection)
        except OSError:
            pass  # The client has gone.

    def talk(self, connection):
        if exactly(connection, 8) != struct.pack("!II", 8, 80877103):  # SSLRequest
            connection.close()  # Without TLS nobody gets any further, as with rds.force_ssl.
            return
        connection.sendall(b"S")
        connection = self.context.wrap_socket(connection, server_side=True)
        startup = message(connection)
        words = startup[8:].split(b"\0")
        parameters = dict(zip(words[::2], words[1::2]))
        connection.sendall(b"R" + struct.pack("!II", 8, 3))  # AuthenticationCleartextPassword
        assert exactly(connection, 1) == b"p"
        password = message(connection)[4:-1].decode()
        made_at = self.made_at(password, parameters[b"user"].decode())
        print(json.dumps({"made_at": made_at}), flush=True)
        if made_at is None:
            reason = b"SFATAL\0C28000\0MPAM authentication failed\0\0"
            connection.sendall(b"E" + struct.pack("!I", 4 + len(reason)) + reason)
            connection.close()
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.postgres)
        server.sendall(startup)
        relay(connection, server)

    def made_at(self, password, user):
        """When a good token was made; `None` for any other."""
        date = parse_qs(password.partition("?")[2]).get("X-Amz-Date", [""])[0]
        try:
            moment = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
        except ValueError:
            return None
        at = int(moment.timestamp())
        is_young = -60 <= self.now() - at < 15 * 60
        is_good = is_young and password == token(at, "localhost", self.port, user, **CREDENTIALS)
        return at if is_good else None


def exactly(connection, count):
    received = b""
    while len(received) < count:
        more = connection.recv(count - len(received))
        if not more:
            raise OSError("closed")
        received += more
    return received


def message(connection):
    """A message, with its length in front."""
    length = exactly(connection, 4)
    return length + exactly(connection, struct.unpack("!I", length)[0] - 4)


def relay(connection, server):
    """Relays until one side closes, in one thread, since two must not share a TLS connection."""
    while True:
        ready = [connection] if connection.pending() else select.select([connection, server], [], [])[0]
        for source in ready:
            received = source.recv(65536)
            if not received:
                connection.close()
                server.close()
                return
            (server if source is connection else connection).sendall(received)


def main():
    if sys.argv[1] == "token":
        print(json.dumps([token(**question) for question in json.load(sys.stdin)]))
        return
    front = Front(sys.argv[2], certificate(sys.argv[3]))
    token(0, "localhost", 1, "warm", **CREDENTIALS)
    threading.Thread(target=front.listen, daemon=True).start()
    print(front.port, flush=True)
    for line in sys.stdin:
        at = int(line)
        front.now = lambda: at
        print("set", flush=True)


main()
