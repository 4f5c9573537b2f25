"""A cluster of etcd members as one thing to ask, with an answer or a LeaseError within a bounded time.

Used by `lease` and by `sustain doctor`. The member that answered last is asked first. When it has not answered after
`hedge_s`, the next one is asked, too, and so on; the first usable answer counts. So a member that is dead, stopped or
cut off costs a fraction of the lease's length. While none has answered all are asked again, a few times, over a second
connection each: what was on its way to a leader that is gone is lost in silence, though another leads meanwhile; and
an etcd that is only slow still answers over the first.

All questions may thus be carried out twice, and later than anybody waits for: `lease` asks only such as allow that.

Members must be of *one* cluster: the first answer says which, and what another one says is refused. Two hosts that
ask two clusters would have two leases.
"""

import base64
import json
import queue
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sustain.errors import LeaseError, LeaseUnavailable
from sustain.failover.lease.etcd.credentials import password, tls_context
from sustain.failover.lease.etcd.endpoint import Answer, Endpoint, Question
from sustain.failover.lease.etcd.url import Address, EtcdUrl

_ROUNDS = 4
_UNAUTHENTICATED, _DENIED, _INVALID, _NOT_FOUND, _PRECONDITION = 16, 7, 3, 5, 9  # gRPC's numbers
_HINT = "are the etcd members up, and can this host reach them? `sustain doctor --lease URL` asks each"


@dataclass(frozen=True, slots=True)
class Limits:
    """Times, from the lease's length. `call_s`: for an answer of the cluster; `hedge_s`: before the next is asked."""

    call_s: float
    hedge_s: float

    @classmethod
    def of(cls, ttl_s: float) -> "Limits":
        # A renewal begins at 0.25 of the length and the command is told to stop at 0.78: one call must fit
        # between them, with room for another attempt.
        return cls(min(max(0.4 * ttl_s, 0.08), 10.0), min(max(ttl_s / 15, 0.01), 1.0))


class Refused(LeaseError):
    """etcd answered, and said no."""

    def __init__(self, message: str, code: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    @property
    def missing(self) -> bool:
        return self.code == _NOT_FOUND


@dataclass
class _Call:
    """One question on its way: who was asked, what went wrong where."""

    question: Question
    answers: "queue.SimpleQueue[tuple[Endpoint, Answer]]" = field(default_factory=queue.SimpleQueue)
    under_way: list[Endpoint] = field(default_factory=list)  # each as often as it still has to answer
    failures: dict[Endpoint, Answer] = field(default_factory=dict)

    def ask(self, endpoint: Endpoint) -> None:
        if endpoint in self.under_way:
            endpoint.abandon()
        self.under_way.append(endpoint)
        endpoint.ask(self.question, lambda answer: self.answers.put((endpoint, answer)))

    def next_answer(self, until_s: float) -> tuple[Endpoint, Answer] | None:
        try:
            endpoint, answer = self.answers.get(timeout=max(until_s - time.monotonic(), 0))
        except queue.Empty:
            return None
        self.under_way.remove(endpoint)
        return endpoint, answer


class Client:
    """For one thread. Endpoints' threads begin with the first question; `close` ends them."""

    def __init__(self, url: EtcdUrl, limits: Limits) -> None:
        self._url = url
        self._limits = limits

        def endpoint(address: Address) -> Endpoint:
            return Endpoint(address, lambda: tls_context(url), _closing_hint(url))

        self._lanes = [(endpoint(each), endpoint(each)) for each in url.endpoints]  # of each member two
        self._first = 0
        self._cluster = ""
        self._token = ""

    def close(self) -> None:
        for lanes in self._lanes:
            for each in lanes:
                each.close()

    def call(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the cluster answers to `request`, as JSON. Raises LeaseError (LeaseUnavailable, Refused)."""
        until_s = time.monotonic() + self._limits.call_s
        body = json.dumps(request).encode()
        if self._url.user is not None and not self._token:
            self._token = self._log_in(until_s)
        try:
            return self._call(Question(path, body, self._token, until_s))
        except Refused as error:
            if not _token_is_over(error) or self._url.user is None:
                raise
        except LeaseError:
            self._token = ""  # etcd does not answer at all to a token of a later state than its own
            raise
        # After a restart of etcd, five minutes of silence, or a change of users.
        self._token = self._log_in(until_s)
        return self._call(Question(path, body, self._token, until_s))

    def survey(self, *, hurry: bool = False) -> list[tuple[str, Answer]]:
        """What each member says of itself (`/v3/maintenance/status`). Raises LeaseError for two clusters in one URL.

        `hurry`: once one has answered, the others have only a little more time.
        """
        until_s = time.monotonic() + self._limits.call_s
        call = _Call(Question("/v3/maintenance/status", b"{}", self._token, until_s))
        for each, _ in self._lanes:
            call.ask(each)
        found: dict[Endpoint, Answer] = {}
        while call.under_way and (heard := call.next_answer(until_s)) is not None:
            found[heard[0]] = heard[1]
            if hurry and heard[1].body is not None:
                until_s = min(until_s, time.monotonic() + 2 * self._limits.hedge_s)
        for each in call.under_way:
            each.abandon()
            found[each] = Answer(failure="does not answer")
        clusters = {_cluster_of(each) for each in found.values()} - {""}
        if len(clusters) > 1:
            raise LeaseError(
                f"{self._url.url}: its hosts are of {len(clusters)} different etcd clusters",
                hint="name the members of one cluster: two would give the lease away twice",
            )
        return [(str(each.address), found[each]) for each, _ in self._lanes]

    def _call(self, question: Question) -> dict[str, Any]:
        call = _Call(question)
        try:
            return self._hear(call)
        finally:
            for each in call.under_way:
                each.abandon()

    def _hear(self, call: _Call) -> dict[str, Any]:
        until_s, now_s = call.question.until_s, time.monotonic()
        order = [*range(self._first, len(self._lanes)), *range(self._first)]
        first = deque(
            (now_s + at * self._limits.hedge_s, self._lanes[each][0]) for at, each in enumerate(order)
        )
        round_s = (until_s - now_s) / _ROUNDS
        again = deque(
            (now_s + count * round_s, self._lanes[each][count % 2])
            for count in range(1, _ROUNDS)
            for each in order
        )
        while now_s < until_s:
            for asks in (first, again):
                while asks and asks[0][0] <= now_s:
                    call.ask(asks.popleft()[1])
            if not first and not call.under_way:
                break  # everybody has failed, and nobody need be waited for
            heard = call.next_answer(min([until_s, *(asks[0][0] for asks in (first, again) if asks)]))
            if heard is not None:
                body = self._usable(*heard, call)
                if body is not None:
                    self._first = next(at for at, lanes in enumerate(self._lanes) if heard[0] in lanes)
                    return body
                if first:
                    first[0] = (now_s, first[0][1])  # the next one need not wait
            now_s = time.monotonic()
        raise self._nobody(call)

    def _usable(self, endpoint: Endpoint, answer: Answer, call: _Call) -> dict[str, Any] | None:
        """The body of a good answer; None of one that another member may better. Raises Refused."""
        if answer.body is None:
            call.failures[endpoint] = answer
            return None
        if answer.status == 200:
            cluster = _cluster_of(answer)
            if self._cluster and cluster != self._cluster:
                failure = f"is of another etcd cluster ({cluster}, not {self._cluster})"
                hint = "name the members of one cluster; after etcd was restored from a backup, start all hosts anew"
                call.failures[endpoint] = Answer(failure=failure, hint=hint)
                return None
            self._cluster = cluster
            return answer.body
        code, message = answer.body.get("code"), _message(answer.body)
        if code in (_UNAUTHENTICATED, _DENIED, _INVALID, _NOT_FOUND, _PRECONDITION):
            raise Refused(f"{endpoint.address}: {message}", int(code), hint=_refusal_hint(message, self._url))
        call.failures[endpoint] = Answer(failure=f"says: {message}", hint=_state_hint(message), may_pass=True)
        return None

    def _log_in(self, until_s: float) -> str:
        request = {"name": self._url.user, "password": password(self._url)}
        body = self._call(Question("/v3/auth/authenticate", json.dumps(request).encode(), "", until_s))
        return str(body.get("token", ""))

    def _nobody(self, call: _Call) -> LeaseError:
        for each in call.under_way:
            call.failures[each] = Answer(failure="does not answer", may_pass=True)
        failures = {each.address: answer for each, answer in call.failures.items()}
        told = [f"{each} {failures[each].failure}" for each in self._url.endpoints if each in failures]
        hints = [failures[each].hint for each in self._url.endpoints if each in failures]
        kind = LeaseUnavailable if all(each.may_pass for each in failures.values()) else LeaseError
        return kind("; ".join(told), hint=next((hint for hint in hints if hint), _HINT))


def encoded(data: bytes | str) -> str:
    """As etcd's JSON has keys and values."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def decoded(text: object) -> bytes:
    return base64.b64decode(text) if isinstance(text, str) else b""


def _cluster_of(answer: Answer) -> str:
    header = (answer.body or {}).get("header")
    return str(header.get("cluster_id", "")) if isinstance(header, dict) else ""


def _message(body: dict[str, Any]) -> str:
    return str(body.get("message") or body.get("error") or "nothing")[:300].removeprefix("etcdserver: ")


def _token_is_over(error: Refused) -> bool:
    said = str(error)
    return (
        error.code == _UNAUTHENTICATED or "invalid auth token" in said or "revision in header is old" in said
    )


def _refusal_hint(message: str, url: EtcdUrl) -> str:
    if "permission denied" in message:
        return f"its role needs readwrite on the prefix sustain/{url.name}/ (etcdctl role grant-permission --prefix)"
    if "authentication failed" in message:
        return f"is {url.password_file} the password of etcd's user {url.user}?"
    if "user name is empty" in message:
        return "this etcd wants a user: add ?user=NAME&password-file=FILE to the lease's URL"
    if "authentication is not enabled" in message:
        return "leave user and password-file out of the lease's URL, or run `etcdctl auth enable`"
    return "see what etcd logs"


def _closing_hint(url: EtcdUrl) -> str:
    if not url.tls:
        return "if it speaks TLS only, add ca=FILE (or tls=1) to the lease's URL; otherwise see what it logs"
    none = "if it speaks no TLS, leave ca= and tls= out of the lease's URL"
    if url.cert is None:
        return f"if it wants certificates of its clients, add cert=FILE&key=FILE to the lease's URL; {none}"
    return f"see what it logs; {none}"


def _state_hint(message: str) -> str:
    if "space exceeded" in message:
        return "etcd is full: compact and defragment it, then `etcdctl alarm disarm`"
    if "no leader" in message or "timed out" in message or "leader changed" in message:
        return "etcd has no majority, or is slow: see `etcdctl endpoint status --cluster`"
    return ""
