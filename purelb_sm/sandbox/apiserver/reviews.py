"""Who may: TokenReview, the access reviews, and the check of a bearer token.

There is one rule: whoever is let in may do everything, as a cluster administrator. Without configured tokens everybody
is let in, but a TokenReview still tells a token apart from none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import unauthorized

ADMIN = "kubernetes-admin"
_GROUPS = ["system:masters", "system:authenticated"]


class Tokens:
    """Bearer tokens and the users they stand for; none configured means that none is needed."""

    def __init__(self, users: Mapping[str, str] | None) -> None:
        self._users = dict(users or {})

    def user(self, authorization: str) -> str:
        """The user behind an Authorization header; raises 401 for a wrong or missing token."""
        if not self._users:
            return ADMIN
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or token.strip() not in self._users:
            raise unauthorized()
        return self._users[token.strip()]

    def review(self, token: str) -> JSON:
        """The status of a TokenReview."""
        user = self._users.get(token)
        if user is None:
            return {"user": {}, "error": "invalid bearer token"}
        return {"authenticated": True, "user": _info(user)}


def _info(user: str) -> JSON:
    return {"username": user, "groups": list(_GROUPS)}


def _without_empty(spec: JSON) -> JSON:
    return {k: _without_empty(v) if isinstance(v, dict) else v for k, v in spec.items() if v not in ("", None)}


def _access(spec: JSON, tokens: Tokens, user: str) -> JSON:
    return {"allowed": True}


def _rules(spec: JSON, tokens: Tokens, user: str) -> JSON:
    return {
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        "incomplete": False,
    }


def _token(spec: JSON, tokens: Tokens, user: str) -> JSON:
    return tokens.review(str(spec.get("token", "")))


def _self(spec: JSON, tokens: Tokens, user: str) -> JSON:
    return {"userInfo": _info(user)}


_REVIEWS: dict[str, Callable[[JSON, Tokens, str], JSON]] = {
    "selfsubjectaccessreviews": _access,
    "subjectaccessreviews": _access,
    "selfsubjectrulesreviews": _rules,
    "tokenreviews": _token,
    "selfsubjectreviews": _self,
}


def review(plural: str, body: JSON, tokens: Tokens, user: str) -> JSON | None:
    """The answer to a POST of a review, or None when the kind is no review."""
    ask = _REVIEWS.get(plural)
    if ask is None:
        return None
    spec = body.get("spec") or {}
    answered = {
        "kind": body.get("kind"),
        "apiVersion": body.get("apiVersion"),
        "metadata": {},
        "spec": _without_empty(spec),
        "status": ask(spec, tokens, user),
    }
    if plural == "selfsubjectreviews":
        del answered["spec"]
    return answered
