"""Writes docs/iam.md: who may do what, from the synthesized policies (`make iam-document`)."""

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from deploy.app import build
from deploy.policies import ACCOUNT, Role, Templates
from deploy.settings import REPOSITORY, read

DOCUMENT: Final = REPOSITORY / "docs" / "iam.md"
_EVERYTHING: dict[str, Any] = {
    "dispatch": {"mode": "task", "canary_interval_seconds": 3600},
    "serving": {"events": True, "dax": True},
    "network": {"nat_gateways": 1},
}
"""Settings under which every role and every permission exists."""

_HEAD = """# Who may do what on AWS

Written by `make iam-document` from the synthesized stacks with everything on: task mode, AppSync Events, DAX. Do not
edit. `<…>` stands for what AWS names itself. `make deploy-check` judges every AWS call that the components make on a
quote's way through the deployed stacks, in warm and in task mode, by these policies: a call that is not allowed fails,
and so does a permission that nothing used, unless `tests/deploy/unused_permissions.py` says why it stands.
"""


def roles() -> dict[str, Role]:
    """Every role of a deployment with everything on."""
    settings = read(**_EVERYTHING)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code.zip"
        code.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty zip
        application = build(settings, code, Path(folder) / "assembly")
        application.app.synth()
        return Templates(Path(application.app.outdir), settings.region).roles(application.prefix)


def document(found: Mapping[str, Role]) -> str:
    """The page."""
    return "\n".join([_HEAD, *(line for path in sorted(found) for line in _section(found[path]))])


def _section(role: Role) -> Iterable[str]:
    yield f"## {role.path}"
    yield ""
    trusted = ", ".join(f"`{service}`" for service in role.trusted)
    yield f"{role.description + '. ' if role.description else ''}Assumed by {trusted}."
    yield ""
    yield "| what for | may | on |"
    yield "|---|---|---|"
    for statement in role.statements:
        actions = ", ".join(f"`{action}`" for action in statement.actions)
        resources = ", ".join(f"`{_short(resource)}`" for resource in statement.resources)
        condition = f" if `{_short(json.dumps(statement.conditions))}`" if statement.conditions else ""
        yield f"| {statement.name or '–'} | {actions} | {resources}{condition} |"
    yield ""


def _short(resource: str) -> str:
    return resource.replace(ACCOUNT, "<account>")


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    DOCUMENT.write_text(document(roles()))
    print(DOCUMENT)


if __name__ == "__main__":
    main()
