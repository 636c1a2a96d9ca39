# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom: versions, shared secret, epochs and fingerprints of two agents. Pure but for the nonces.

    consumer                          producer
       Hello(nonce)          ─▶
                             ◀─  Challenge(nonce', HMAC)     the producer knows the secret
       Proof(HMAC)           ─▶                              so does the consumer
                             ◀─  Welcome | Refused

Both HMACs cover the whole Hello and both nonces, so neither can be replayed or passed on from another connection. The
secret proves who is there; it does not encrypt what follows.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from vllm_epd.errors import ConfigError, PeerError
from vllm_epd.transfer import wire
from vllm_epd.transfer.shard import Shard
from vllm_epd.types import Fingerprint

NONCE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """What one side of a connection is.

    Attributes:
        epoch: of its instance.
        fingerprint: of its instance.
        secret: what all instances of a fleet share; empty where none is set.
        content: what its items are; a consumer that takes them for something else is refused.
        shard: which part of each item it has; a consumer that wants another one is refused.
    """

    epoch: str
    fingerprint: Fingerprint
    secret: bytes = b""
    content: str = "embeddings"
    shard: Shard = Shard()

    def hello(self, producer: str, tiers: Sequence[str]) -> wire.Hello:
        """What this consumer says first to the producer of that epoch."""
        return wire.Hello(
            version=wire.WIRE_VERSION,
            producer=producer,
            consumer=self.epoch,
            fingerprint=self.fingerprint.to_mapping(),
            content=self.content,
            shard=astuple(self.shard),
            tiers=list(tiers),
            nonce=secrets.token_bytes(NONCE_BYTES),
        )

    def challenge(self, hello: wire.Hello) -> wire.Challenge:
        """What this producer answers.

        Raises:
            PeerError: the consumer speaks another version, or its nonce is none.
        """
        _check_version(hello.version)
        if len(hello.nonce) != NONCE_BYTES:
            raise PeerError(f"a nonce of {len(hello.nonce)} bytes, expected {NONCE_BYTES}")
        nonce = secrets.token_bytes(NONCE_BYTES)
        return wire.Challenge(wire.WIRE_VERSION, nonce, self._mac(b"producer", hello, nonce))

    def prove(self, hello: wire.Hello, challenge: wire.Challenge) -> wire.Proof:
        """What this consumer answers to a producer that knows the secret.

        Raises:
            PeerError: it speaks another version or does not know the secret.
        """
        _check_version(challenge.version)
        if not hmac.compare_digest(challenge.mac, self._mac(b"producer", hello, challenge.nonce)):
            raise PeerError("the producer has another shared secret; set the same EPD_TOKEN everywhere")
        return wire.Proof(self._mac(b"consumer", hello, challenge.nonce))

    def admit(self, hello: wire.Hello, challenge: wire.Challenge, proof: wire.Proof) -> None:
        """Check a consumer, as the producer.

        Raises:
            PeerError: another secret, another epoch expected, another fingerprint, or other items.
        """
        if not hmac.compare_digest(proof.mac, self._mac(b"consumer", hello, challenge.nonce)):
            raise PeerError("the consumer has another shared secret; set the same EPD_TOKEN everywhere")
        if hello.producer != self.epoch:
            raise PeerError(f"epoch {hello.producer} is over, the instance was restarted as {self.epoch}")
        self._check_fingerprint(hello.fingerprint)
        self.shard.check_reader(Shard(*hello.shard))
        if hello.content != self.content:
            raise PeerError(f"the consumer wants {hello.content}, there are {self.content}")

    def accept(self, welcome: wire.Welcome, producer: str) -> None:
        """Check a producer that has welcomed this consumer.

        Raises:
            PeerError: another epoch than expected, or another fingerprint.
        """
        if welcome.epoch != producer:
            raise PeerError(f"epoch {producer} is over, the instance was restarted as {welcome.epoch}")
        self._check_fingerprint(welcome.fingerprint)

    def _check_fingerprint(self, mapping: dict[str, str]) -> None:
        try:
            theirs = Fingerprint.from_mapping(mapping)
        except ConfigError as error:
            raise PeerError(str(error)) from error
        if differences := self.fingerprint.differences(theirs):
            raise PeerError(f"fingerprints differ: {'; '.join(differences)}")

    def _mac(self, side: bytes, hello: wire.Hello, nonce: bytes) -> bytes:
        return hmac.digest(self.secret, side + hashlib.sha256(wire.encode(hello)).digest() + nonce, "sha256")


def _check_version(version: int) -> None:
    if version != wire.WIRE_VERSION:
        raise PeerError(f"wire version {version}, this instance speaks {wire.WIRE_VERSION}")
